"""Batches of a stream of examples, collated in a thread during training."""

import queue
import threading
from collections.abc import Callable, Iterator

import torch

from utils.examples.streaming import WINDOW_TOKENS, BlockStream


class StreamLoader:
    """Batches of a stream, read and collated ahead of the training by a thread.

    The thread waits when it is about a window of tokens ahead. `dataset.state` belongs to the last batch that the loop
    received, not to the last one that was read ahead.

    Args:
        dataset: the stream.
        batch_size: examples in a batch.
        collate_fn: a list of examples -> a batch.
        num_batches: the number of batches in the whole training, which is the length of the loader.
        pin_memory: as for torch's DataLoader.
    """

    def __init__(
        self, dataset: BlockStream, batch_size: int, collate_fn: Callable, num_batches: int, pin_memory: bool = False
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.collate_fn = collate_fn
        self.num_batches = num_batches
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return self.num_batches

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Nothing to do: a stream counts its epochs itself, and its state says where to continue."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches = queue.Queue(max(WINDOW_TOKENS // (self.batch_size * self.dataset.block_size), 4))
        is_closed = threading.Event()
        thread = threading.Thread(target=self._read_ahead, args=(batches, is_closed), name="stream", daemon=True)
        thread.start()
        try:
            while True:
                item = batches.get()
                if isinstance(item, BaseException):
                    raise item
                batch, self.dataset.state = item
                yield batch
        finally:
            is_closed.set()
            while thread.is_alive():  # it may be waiting for room in the queue
                _empty(batches)
                thread.join(timeout=0.01)

    def _read_ahead(self, batches: queue.Queue, is_closed: threading.Event) -> None:
        examples = iter(self.dataset)
        try:
            while not is_closed.is_set():
                batch = self.collate_fn([next(examples) for _ in range(self.batch_size)])
                if self.pin_memory:
                    batch = {name: values.pin_memory() for name, values in batch.items()}
                batches.put((batch, examples.state()))
        except BaseException as error:  # raised where the batches are used
            batches.put(error)
        finally:
            examples.documents.source.close()


def _empty(batches: queue.Queue) -> None:
    while True:
        try:
            batches.get_nowait()
        except queue.Empty:
            return
