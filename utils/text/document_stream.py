"""Documents read on demand from shards. Reading can start anywhere, and each process can read a part of its own."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa

from utils.errors import UsageError
from utils.fingerprint import fingerprint
from utils.hub.errors import explain_hub_error
from utils.text.read_errors import explain_read_error
from utils.text.row import Row


ROWS_PER_READ = 200


@dataclass(frozen=True)
class HeldOut:
    """Selects the rows of a stream that are held out for evaluation: a share of them, by a hash of their position.

    Args:
        percentage: share of the rows, 1 to 99.
        seed: any integer from 0; another seed selects other rows.
    """

    percentage: int
    seed: int

    def __call__(self, shard: int, rows: np.ndarray) -> np.ndarray:
        """Whether each row of a shard is held out, bool of shape (rows,), for row numbers of the same shape."""
        hashes = _hash(_hash(_hash(np.array([self.seed])) ^ np.uint64(shard)) ^ rows.astype(np.uint64))
        return hashes % np.uint64(100) < self.percentage


def _hash(numbers: np.ndarray) -> np.ndarray:
    """Pseudorandom uint64 for each integer, unrelated even for consecutive ones: SplitMix64 (Steele et al. 2014)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class DocumentStream:
    """Documents in shards, such as the files of a corpus. Any number of processes can read them independently.

    Args:
        rows: reads the shards.
        source: the flag that names the text, for error messages.
        source_fingerprint: digest of what determines the rows, as far as that is known without reading them.
        text_column: the column that is also available as "text".
        files: the local files that are read, if any.
        held_out: selects the rows held out for evaluation; None if no rows are held out.
        is_held_out: True for the held-out documents, False for the remaining ones.
        is_endless: True for training, epoch after epoch. The arguments below apply to training only.
        seed: seeds the order of the shards and of the documents in the shuffle buffer.
        shuffle_buffer_size: number of documents that the next one is drawn from; 0 keeps the order.
        process_index, num_processes: this process and the number of processes that share the documents.
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
        """The columns of the first row. Raises UsageError if there is no row."""
        for shard in range(self.num_shards):
            for table in self._tables(shard, 0):
                return table.schema
        raise UsageError(f"the corpus is empty: {self.source} has no documents")

    @property
    def column_names(self) -> list[str]:
        return self.schema.names

    @property
    def _fingerprint(self) -> str:
        """Digest of what determines the documents. Private only in name: datasets.Dataset has the same attribute."""
        held_out = None if self.held_out is None else [*dataclasses.astuple(self.held_out), self.is_held_out]
        return fingerprint(source=self.source_fingerprint, text_column=self.text_column, held_out=held_out)

    def split(self, percentage: int, seed: int) -> tuple["DocumentStream", "DocumentStream"]:
        """Split into training documents and held-out documents; each document is in exactly one of the two.

        Args:
            percentage: share of held-out documents, 1 to 99.
            seed: any integer from 0; another seed selects other documents.
        """
        held_out = HeldOut(percentage, seed)
        return (
            dataclasses.replace(self, held_out=held_out, is_held_out=False),
            dataclasses.replace(self, held_out=held_out, is_held_out=True),
        )

    def read(
        self, shard: int, first_row: int = 0, step: int = 1, remainder: int = 0
    ) -> Iterator[tuple[int, list[Row]]]:
        """Read the documents of a shard from `first_row` on, in batches of at most `ROWS_PER_READ`.

        The rows before `first_row` may have to be read too, but are not processed.

        Args:
            step, remainder: only the rows whose number modulo `step` equals `remainder` are returned.

        Yields:
            (next_row, documents): the row after the batch, and its documents. The list is empty if the batch
            has no matching row.

        Raises:
            UsageError: a file is damaged or missing, or the network failed.
        """
        for table in self._tables(shard, first_row):
            numbers = np.arange(first_row, first_row + len(table))
            first_row += len(table)
            is_selected = numbers % step == remainder
            if self.held_out is not None:
                is_selected &= self.held_out(shard, numbers) == self.is_held_out
            columns = table.filter(pa.array(is_selected)).to_pydict()
            if self.text_column != "text":
                columns["text"] = columns[self.text_column]
            yield first_row, [Row(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def iter(self, batch_size: int) -> Iterator[dict[str, list]]:
        """All documents in order, as columns, like Dataset.iter; `batch_size` is ignored in favor of ROWS_PER_READ."""
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
        except Exception as error:  # of many types: damaged or missing files, or the network
            if self.files:
                raise explain_read_error(error, self.source, list(self.files)) from error
            raise UsageError(f"{self.source}: {explain_hub_error(error, self.source.split()[-1])}") from error
