"""Documents in local files, read in place and in batches, without a copy of the text in the cache of `datasets`."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils.config.data_arguments import DataArguments
from utils.errors import UsageError
from utils.fingerprint import fingerprint
from utils.text.file_formats import COMPRESSIONS, format_of
from utils.text.file_pieces import Piece, columns_of, count_rows, read_piece, split_file
from utils.text.read_errors import explain_read_error
from utils.text.row import Row


READER_VERSION = 1  # part of the cache key: increase it when the rows change for the same files
MAX_FILES = 1000  # more are read in bundles of neighbors


@dataclass(frozen=True)
class FileDocuments:
    """The documents of local files of one format, in order.

    Args:
        source: the flag that names the files, for error messages.
        files: .txt or .jsonl files, plain or compressed, or .parquet files.
        document_by, keep_linebreaks: for .txt files; see DataArguments.
        text_column: the column that is also available as "text".
        selected: ranges of rows, ascending; None for all rows.
        rows_of_pieces: the number of rows of each of `pieces`, if they have been counted.
    """

    source: str
    files: tuple[str, ...]
    document_by: str
    keep_linebreaks: bool
    text_column: str = "text"
    selected: tuple[tuple[int, int], ...] | None = None
    rows_of_pieces: tuple[int, ...] | None = None

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        """What can be read independently: files, or parts of large ones."""
        return [piece for file in self.files for piece in self._explained(file, split_file(file, self.document_by))]

    @functools.cached_property
    def columns(self) -> dict[str, bool]:
        """The names of the columns, as far as the first rows have them, and whether they are columns of strings.

        Raises:
            UsageError: there is no row.
        """
        for piece in self.pieces:
            columns = next(self._explained(piece.file, columns_of(piece, self.document_by)), None)
            if columns:
                return columns
        raise UsageError(f"{self.source} {' '.join(self.files)}: the corpus is empty")

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    @property
    def _fingerprint(self) -> str:
        """Digest of what determines the documents. Private only in name: datasets.Dataset has the same attribute."""
        return fingerprint(pieces=[self.identity(piece) for piece in self.pieces], selected=self.selected)

    @property
    def num_rows(self) -> int | None:
        """The number of selected rows; None if they have not been counted."""
        if self.selected is not None:
            return sum(end - start for start, end in self.selected)
        return None if self.rows_of_pieces is None else sum(self.rows_of_pieces)

    def count(self) -> tuple["FileDocuments", np.ndarray]:
        """Count the rows. Returns these documents with `rows_of_pieces`, and about how many bytes each row has."""
        sizes = [
            np.concatenate([*self._explained(piece.file, count_rows(piece, self.document_by)), np.empty(0, np.int64)])
            for piece in self.pieces
        ]
        counted = dataclasses.replace(self, rows_of_pieces=tuple(map(len, sizes)))
        return counted, np.concatenate(sizes)

    def read(self) -> Iterator[list[Row]]:
        """The rows in order, in lists.

        Raises:
            UsageError: text that is not UTF-8 (with file and byte), malformed JSON (with file and line), a file that
                cannot be decompressed or is not a Parquet file.
        """
        first_row = 0
        for number, piece in enumerate(self.pieces):
            if self.selected is None:
                yield from self.read_piece(piece)
            else:
                last_row = first_row + self.rows_of_pieces[number]
                ranges = clip(self.selected, first_row, last_row)
                if ranges:
                    yield from self.read_piece(piece, ranges)
                first_row = last_row

    def read_piece(self, piece: Piece, ranges: list[tuple[int, int]] | None = None) -> Iterator[list[Row]]:
        """The rows of a piece, or those in ranges of its rows, in lists."""
        first_row = 0
        for rows in self._explained(
            piece.file, read_piece(piece, self.document_by, self.keep_linebreaks, self.columns)
        ):
            if self.text_column != "text":
                for row in rows:
                    row["text"] = row[self.text_column]
            if ranges is None:
                yield rows
            else:
                chosen = [
                    row for start, end in clip(ranges, first_row, first_row + len(rows)) for row in rows[start:end]
                ]
                if chosen:
                    yield chosen
            first_row += len(rows)

    def identity(self, piece: Piece) -> dict:
        """What determines the rows of a piece; serializable as JSON."""
        stat = os.stat(piece.file)
        return {
            "version": READER_VERSION,
            "file": [os.path.abspath(piece.file), stat.st_size, stat.st_mtime_ns],
            "place": [piece.start, piece.end],
            "document_by": self.document_by,
            "keep_linebreaks": self.keep_linebreaks,
            "text_column": self.text_column,
        }

    def bundles(self) -> list[list[int]]:
        """The numbers of the pieces, in order, in lists that are tokenized together: one piece, unless there are many.

        A bundle ends where the name of a file says so. So another file changes the bundle that it belongs to alone.
        """
        per_bundle = 1
        while len(self.files) > MAX_FILES * per_bundle:
            per_bundle *= 2
        bundles: list[list[int]] = [[]]
        for number, piece in enumerate(self.pieces):
            bundles[-1].append(number)
            digest = hashlib.sha256(os.path.abspath(piece.file).encode(errors="surrogateescape")).digest()
            if int.from_bytes(digest[:8]) % per_bundle == 0:
                bundles.append([])
        return [bundle for bundle in bundles if bundle]

    def _explained(self, file: str, steps: Iterator) -> Iterator:
        """The same steps, with errors that name the file and the place in it."""
        try:
            yield from steps
        except Exception as error:
            raise explain_read_error(error, self.source, [file]) from error


def open_files(source: str, files: list[str], data_args: DataArguments) -> FileDocuments | None:
    """The documents of files that can be read in place; None if `datasets` must convert them first."""
    file_format = format_of(files[0])
    is_compressed = any(file.endswith(COMPRESSIONS) for file in files)
    are_lines = file_format == "json" and all(".jsonl" in os.path.basename(file) for file in files)
    if file_format != "text" and not are_lines and (file_format != "parquet" or is_compressed):
        return None
    documents = FileDocuments(source, tuple(files), data_args.document_by, data_args.keep_linebreaks)
    return None if any(piece.is_json_array for piece in documents.pieces) else documents


def clip(ranges: Iterator[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """The parts of ranges that are between two numbers, counted from the first of these."""
    return [
        (max(start, first) - first, min(end, last) - first) for start, end in ranges if start < last and end > first
    ]
