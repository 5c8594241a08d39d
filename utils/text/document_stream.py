"""Documents that are read when they are needed, from shards; from any place on, and each process its own part."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa

from utils.errors import UsageError
from utils.fingerprint import fingerprint
from utils.hub.errors import explain_hub_error
from utils.text.text_files import explain_read_error


ROWS_PER_READ = 200


@dataclass(frozen=True)
class HeldOut:
    """Which rows of a stream are held out for evaluation: a share of them, by a hash of where they stand."""

    percentage: int
    seed: int

    def __call__(self, shard: int, rows: np.ndarray) -> np.ndarray:
        """bool for each of the row numbers, int64 of shape (rows,)."""
        hashes = _hash(_hash(_hash(np.array([self.seed])) ^ np.uint64(shard)) ^ rows.astype(np.uint64))
        return hashes % np.uint64(100) < self.percentage


def _hash(numbers: np.ndarray) -> np.ndarray:
    """Neighbours in, unrelated numbers out, uint64: SplitMix64 (Steele et al. 2014)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class DocumentStream:
    """Documents in shards, the files of a corpus, that any number of processes read each for itself.

    Args:
        rows: what reads the shards.
        source: says in errors where the text comes from.
        source_fingerprint: what decides the rows, as far as it can be known without reading them.
        text_column: the column that becomes "text".
        files: those that are read, if they are local.
        held_out: the rows that are held out; None for no such rows.
        is_held_out: whether these documents are those that are held out, or the others.
        is_endless: to be trained on, epoch after epoch; the arguments after this one are about that.
        seed: draws the order in which the shards are read, and what follows from the stream.
        shuffle_buffer_size: documents out of which the next one is drawn in training; 0 keeps the order.
        process_index, num_processes: which part of the shards is read in training, and of how many.
    """

    rows: datasets.IterableDataset
    source: str
    source_fingerprint: str
    text_column: str = "text"
    files: tuple[str, ...] = ()
    held_out: HeldOut | None = None
    is_held_out: bool = False
    is_endless: bool = False
    seed: int = 0
    shuffle_buffer_size: int = 0
    process_index: int = 0
    num_processes: int = 1

    @property
    def num_shards(self) -> int:
        return self.rows.num_shards

    @property
    def schema(self) -> pa.Schema:
        """The columns of the first row. Raises UsageError where there is no row."""
        for shard in range(self.num_shards):
            for table in self._tables(shard, 0):
                return table.schema
        raise UsageError(f"the corpus is empty: {self.source} has no document")

    @property
    def column_names(self) -> list[str]:
        return self.schema.names

    @property
    def _fingerprint(self) -> str:
        """What decides the documents, as a Dataset has it."""
        held_out = None if self.held_out is None else [*dataclasses.astuple(self.held_out), self.is_held_out]
        return fingerprint(source=self.source_fingerprint, text_column=self.text_column, held_out=held_out)

    def split(self, percentage: int, seed: int) -> tuple["DocumentStream", "DocumentStream"]:
        """Documents to train on and documents that are held out: disjoint and complete.

        Args:
            percentage: share of the held-out ones, 1 to 99.
            seed: any integer from 0 on; draws which ones.
        """
        held_out = HeldOut(percentage, seed)
        return (
            dataclasses.replace(self, held_out=held_out, is_held_out=False),
            dataclasses.replace(self, held_out=held_out, is_held_out=True),
        )

    def read(self, shard: int, first_row: int = 0, step: int = 1, rest: int = 0) -> Iterator[tuple[int, list[dict]]]:
        """The documents of a shard from a row on, up to a few hundred at a time.

        What lies before `first_row` may have to be read again, but nothing else is done with it.

        Args:
            step, rest: only the rows whose number, divided by `step`, leaves `rest`.

        Yields:
            the row where reading would go on, and the documents as dicts; maybe none, where all were left out.
        """
        for table in self._tables(shard, first_row):
            numbers = np.arange(first_row, first_row + len(table))
            first_row += len(table)
            is_used = numbers % step == rest
            if self.held_out is not None:
                is_used &= self.held_out(shard, numbers) == self.is_held_out
            columns = table.filter(pa.array(is_used)).to_pydict()
            if self.text_column != "text":
                columns["text"] = columns.pop(self.text_column)
            yield first_row, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def iter(self, batch_size: int) -> Iterator[dict[str, list]]:
        """All documents in order, as Dataset.iter gives them: in columns, of about `batch_size` rows."""
        for shard in range(self.num_shards):
            for _, rows in self.read(shard):
                if rows:
                    yield {name: [row[name] for row in rows] for name in rows[0]}

    def _tables(self, shard: int, first_row: int) -> Iterator[pa.Table]:
        rows = self.rows.shard(self.num_shards, shard)
        if first_row:
            rows = rows.skip(first_row)
        try:
            yield from rows.with_format("arrow").iter(batch_size=ROWS_PER_READ)
        except Exception as error:  # of many types: files may be damaged, or have gone, or the network fails
            if self.files:
                raise explain_read_error(error, self.source, list(self.files)) from error
            raise UsageError(f"{self.source}: {explain_hub_error(error, self.source.split()[-1])}") from error
