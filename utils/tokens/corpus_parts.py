"""Divide a corpus into parts, each of which is tokenized, kept and checked on its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from datasets import Dataset

from utils.text.document_stream import ROWS_PER_READ, DocumentStream
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


def divide(documents: Dataset | DocumentStream, in_one: bool) -> list[Part]:
    """The parts of a corpus, in order. With `in_one`, all of it is one part."""
    if isinstance(documents, DocumentStream) or in_one:
        return [Part("the corpus", {"documents": documents._fingerprint}, lambda: read_rows(documents))]
    bytes_per_row = max(documents.data.nbytes // max(len(documents.data), 1), 1)
    num_rows = max(PART_BYTES // bytes_per_row, 1)
    starts = range(0, len(documents), num_rows)
    return [_rows_of(documents, start, min(start + num_rows, len(documents))) for start in starts]


def read_rows(documents: Dataset | DocumentStream) -> Iterator[list[Row]]:
    """The rows in order, in lists of at most `ROWS_PER_READ`."""
    for columns in documents.iter(batch_size=ROWS_PER_READ):
        yield [Row(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _rows_of(documents: Dataset, start: int, end: int) -> Part:
    identity = {"documents": documents._fingerprint, "rows": [start, end]}
    return Part(f"rows {start:,} to {end:,}", identity, lambda: read_rows(documents.select(range(start, end))))
