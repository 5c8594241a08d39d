"""Divide a corpus into parts, each of which is tokenized, kept and checked on its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from utils.text.columns import Documents
from utils.text.document_stream import ROWS_PER_READ, DocumentStream
from utils.text.file_documents import FileDocuments, clip
from utils.text.row import Row


PART_BYTES = 64 << 20  # of a dataset's Arrow tables; part of what a cache key means


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a corpus.

    Attributes:
        name: for messages.
        identity: determines the rows; serializable as JSON.
        read: reads the rows in order, in lists of at most a few hundred.
    """

    name: str
    identity: dict
    read: Callable[[], Iterator[list[Row]]]


class Division(NamedTuple):
    """The parts of a corpus, in order.

    Attributes:
        rows: the ranges of their rows that the corpus has, ascending; None for all.
        num_documents: rows of all parts; None if not known.
    """

    parts: list[Part]
    rows: Sequence[tuple[int, int]] | None
    num_documents: int | None


def divide(documents: Documents, in_one: bool) -> Division:
    """Divide a corpus into parts. With `in_one`, all of it is one part.

    Of files of which most rows are selected, a part has all rows, and the store leaves out the others: parts then stay
    the same when another file changes which rows are held out.
    """
    num_documents = _num_rows(documents)
    if isinstance(documents, DocumentStream) or in_one:
        part = Part("the corpus", {"documents": documents._fingerprint}, lambda: read_rows(documents))
        return Division([part], None, num_documents)
    if isinstance(documents, FileDocuments):
        return _divide_files(documents)
    bytes_per_row = max(documents.data.nbytes // max(len(documents.data), 1), 1)
    num_rows = max(PART_BYTES // bytes_per_row, 1)
    starts = range(0, len(documents), num_rows)
    parts = [_rows_of(documents, start, min(start + num_rows, len(documents))) for start in starts]
    return Division(parts, None, num_documents)


def read_rows(documents: Documents) -> Iterator[list[Row]]:
    """The rows in order, in lists."""
    if isinstance(documents, FileDocuments):
        yield from documents.read()
        return
    for columns in documents.iter(batch_size=ROWS_PER_READ):
        yield [Row(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _divide_files(documents: FileDocuments) -> Division:
    selected = documents.selected
    num_rows = None if documents.rows_of_pieces is None else sum(documents.rows_of_pieces)
    if selected is None or 2 * documents.num_rows >= num_rows:
        parts = [_bundle_of(documents, [(number, None) for number in bundle]) for bundle in documents.bundles()]
        return Division(parts, selected, num_rows)
    ends = np.cumsum(documents.rows_of_pieces).tolist()
    starts = [0, *ends[:-1]]
    parts = []
    for bundle in documents.bundles():
        chosen = [(number, clip(selected, starts[number], ends[number])) for number in bundle]
        if any(ranges for _, ranges in chosen):
            parts.append(_bundle_of(documents, [(number, ranges) for number, ranges in chosen if ranges]))
    return Division(parts, None, documents.num_rows)


def _bundle_of(documents: FileDocuments, chosen: list[tuple[int, list[tuple[int, int]] | None]]) -> Part:
    """A part of pieces, by their numbers, each with the ranges of its rows, or None for all."""
    pieces = [(documents.pieces[number], ranges) for number, ranges in chosen]

    def read() -> Iterator[list[Row]]:
        for piece, ranges in pieces:
            yield from documents.read_piece(piece, ranges)

    identity = {"pieces": [[documents.identity(piece), ranges] for piece, ranges in pieces]}
    more = f" and {len(pieces) - 1:,} more files" if len(pieces) > 1 else ""
    return Part(f"{pieces[0][0].file}{more}", identity, read)


def _num_rows(documents: Documents) -> int | None:
    if isinstance(documents, Dataset):
        return len(documents)
    return documents.num_rows if isinstance(documents, FileDocuments) else None


def _rows_of(documents: Dataset, start: int, end: int) -> Part:
    identity = {"documents": documents._fingerprint, "rows": [start, end]}
    return Part(f"rows {start:,} to {end:,}", identity, lambda: read_rows(documents.select(range(start, end))))
