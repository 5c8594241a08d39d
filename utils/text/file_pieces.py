"""Read files piece by piece: lines or paragraphs of .txt, lines of .jsonl, row groups of .parquet."""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.errors import UsageError
from utils.text.file_formats import COMPRESSIONS, format_of, read_text
from utils.text.row import Row
from utils.text.text_files import PIECE_SIZE, read_documents


ROWS_PER_READ = 200


@dataclass(frozen=True)
class Piece:
    """A part of a file that can be read independently.

    Attributes:
        start, end: bytes of .txt and .jsonl files, of which a piece has the lines that start there; row groups of
            .parquet files. No end for a whole .txt or .jsonl file.
        is_json_array: a .jsonl file that is one JSON array instead of lines.
    """

    file: str
    start: int = 0
    end: int | None = None
    is_json_array: bool = False

    @property
    def format(self) -> str:
        return format_of(self.file)


def split_file(file: str, document_by: str) -> Iterator[Piece]:
    """Split a file into pieces of about PIECE_SIZE bytes, if its documents allow it and it is not compressed."""
    file_format = format_of(file)
    if file_format == "parquet":
        metadata = pq.read_metadata(file)
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        start = 0
        for end in range(1, len(sizes) + 1):
            if sum(sizes[start:end]) >= PIECE_SIZE or end == len(sizes):
                yield Piece(file, start, end)
                start = end
        return
    if file_format == "json":
        beginning = next((text for text in read_text(file) if text.strip()), "")
        if beginning.lstrip().startswith("["):
            yield Piece(file, is_json_array=True)
            return
    size = os.path.getsize(file)
    is_divisible = file_format == "json" or document_by == "line"
    if not is_divisible or file.endswith(COMPRESSIONS) or size <= PIECE_SIZE:
        yield Piece(file)
        return
    for start in range(0, size, PIECE_SIZE):
        yield Piece(file, start, start + PIECE_SIZE)


def read_piece(piece: Piece, document_by: str, keep_linebreaks: bool, columns: dict[str, bool]) -> Iterator[list[Row]]:
    """The rows of a piece in order, in lists.

    Args:
        columns: a row of a .jsonl file that lacks one of them gets None.

    Raises:
        UsageError: text that is not UTF-8, or malformed JSON.
    """
    if piece.format == "text":
        for documents in read_documents(piece.file, piece.start, piece.end, document_by, keep_linebreaks):
            yield [Row(text=document) for document in documents]
    elif piece.format == "parquet":
        for batch in _read_batches(piece):
            values = batch.to_pydict()
            yield [Row(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    else:
        for rows in _read_json_lines(piece):
            for row in rows:
                if len(row) < len(columns):
                    for name in columns.keys() - row.keys():
                        row[name] = None
            yield rows


def columns_of(piece: Piece, document_by: str) -> Iterator[dict[str, bool]]:
    """Yields the columns of the first rows of a piece, and whether they are strings; nothing if it has no rows."""
    if piece.format == "text":
        if any(read_documents(piece.file, piece.start, piece.end, document_by, True)):
            yield {"text": True}
    elif piece.format == "parquet":
        schema = pq.read_schema(piece.file)
        if pq.read_metadata(piece.file).num_rows:
            yield {field.name: _is_string(field.type) for field in schema}
    else:
        for rows in _read_json_lines(piece):
            columns: dict[str, bool] = {}
            for name, value in itertools.chain.from_iterable(row.items() for row in rows):
                if value is not None:
                    columns[name] = columns.get(name, True) and isinstance(value, str)
            for name in itertools.chain.from_iterable(rows):
                columns.setdefault(name, False)
            if columns:
                yield columns
                return


def count_rows(piece: Piece, document_by: str) -> Iterator[np.ndarray]:
    """About how many bytes each row of a piece has, int64 of shape (rows,), in several arrays."""
    if piece.format == "text":
        for documents in read_documents(piece.file, piece.start, piece.end, document_by, True):
            yield np.array([len(document) for document in documents], dtype=np.int64)
    elif piece.format == "parquet":
        metadata = pq.read_metadata(piece.file)
        for number in range(piece.start, piece.end):
            group = metadata.row_group(number)
            yield np.full(group.num_rows, group.total_byte_size // max(group.num_rows, 1), dtype=np.int64)
    else:
        for text in read_text(piece.file, piece.start, piece.end):
            yield np.array([len(line) for line in text.split("\n") if line.strip()], dtype=np.int64)


def _read_batches(piece: Piece) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(piece.file) as file:
        yield from file.iter_batches(batch_size=ROWS_PER_READ, row_groups=range(piece.start, piece.end))


def _read_json_lines(piece: Piece) -> Iterator[list[Row]]:
    num_lines = 0
    for text in read_text(piece.file, piece.start, piece.end):
        rows = []
        lines = text.removesuffix("\n").split("\n")
        for number, line in enumerate(lines, start=num_lines + 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UsageError(f"{_line(piece, number)}: {error.msg}") from error
                if not isinstance(row, dict):
                    raise UsageError(f"{_line(piece, number)}: not an object with columns, but {line.strip()[:40]}")
                if "\\ud" in line or "\\uD" in line:
                    _require_characters(row, piece, number)
                rows.append(Row(row))
        num_lines += len(lines)
        yield rows


def _require_characters(row: dict, piece: Piece, number: int) -> None:
    """Raise UsageError for half a surrogate pair, which JSON can spell but which is no character."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{_line(piece, number)}: half of a surrogate pair, which is not a character") from error


def _line(piece: Piece, number: int) -> str:
    """Names a line of a piece by its number in the file."""
    if piece.start:
        with open(piece.file, "rb") as file:
            before = file.read(piece.start - 1)  # the piece starts after the line that this ends in
            number += before.count(b"\n") + 1
    return f"{piece.file}: malformed JSON in line {number}"


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
