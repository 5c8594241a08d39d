"""Read .csv and .tsv files with `datasets`, but refuse rows that its reader would merge or shift in silence."""

import csv
import io
import itertools
import logging
import sys
from collections.abc import Iterator

import fsspec
import pyarrow as pa
from datasets.packaged_modules.csv.csv import Csv

from utils.errors import UsageError


logger = logging.getLogger(__name__)

SEPARATORS = {"csv": ",", "tsv": "\t"}
CSV_READER_VERSION = "1"  # part of the cache key: increase it when CsvDocuments reads differently


class CsvDocuments(Csv):
    """The reader of `datasets`, which is that of pandas. Each row that it returns has also been read by `read_rows`.

    pandas takes whatever lies between two quotes for one field: a text that begins with a quote and does not end with
    one swallows the rows up to the next quote. And if the first row has more fields than the header, it takes the
    first field for an index.
    """

    def _generate_tables(self, base_files, files_iterables) -> Iterator[tuple[tuple, pa.Table]]:
        for index, (file, parts) in enumerate(zip(base_files, files_iterables, strict=True)):
            lines_of_rows = _log_long_rows(file, read_rows(file, self.config.sep))
            next(lines_of_rows, None)  # the header
            for number, (_, table) in enumerate(super()._generate_tables([file], [parts])):
                sum(itertools.islice(lines_of_rows, len(table)))
                yield (index, number), table
            sum(lines_of_rows)


def read_rows(file: str, separator: str) -> Iterator[int]:
    """The number of lines of each row, with the header. Blank lines are no rows.

    Raises:
        UsageError: a row that does not conform to RFC 4180, with its line. A field that begins with a quote must end
            with one, followed by the separator or the end of the line; quotes within it must be doubled. No row may
            have more fields than the header.
    """
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is less than a long document
    with fsspec.open(file, "rb", compression="infer") as stream:
        reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=separator, strict=True)
        num_columns = None
        while True:
            first_line = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise UsageError(
                    f"{file}: unbalanced quotes in the row that begins in line {first_line:,} (line "
                    f"{reader.line_num:,}: {error}); double the quotes within a quoted field, or convert it to .jsonl"
                ) from error
            if row is None:
                return
            num_columns = num_columns or len(row)
            if len(row) > num_columns:
                raise UsageError(
                    f"{file}: the row in line {first_line:,} has {len(row)} fields, but the header has {num_columns}: "
                    f"put quotes around fields that contain {separator!r}, or convert it to .jsonl"
                )
            if row:
                yield reader.line_num + 1 - first_line


def _log_long_rows(file: str, lines_of_rows: Iterator[int]) -> Iterator[int]:
    """Pass the numbers of lines on, and then log how many rows have line breaks, in case that is a mistake."""
    num_rows = num_long = 0
    for num_lines in lines_of_rows:
        num_rows += 1
        num_long += num_lines > 1
        yield num_lines
    if num_long:
        logger.info(
            "corpus: %s: %s of %s rows have line breaks within quotes", file, f"{num_long:,}", f"{num_rows - 1:,}"
        )
