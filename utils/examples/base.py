"""What every dataset of training examples offers to the trainer, the sampler and the reports."""

from pathlib import Path

import numpy as np
import torch

from utils.tokens.token_store import TokenStore


class Examples(torch.utils.data.Dataset):
    """A dataset of examples, each a dict of NumPy arrays and integers that a collator makes batches of.

    A finite dataset is indexed from 0 to `num_examples - 1`. An endless stream has no length and is iterated over.

    Attributes:
        block_size: the most tokens in an example.
        stores: the token stores that the examples are read from; empty if there are none.
        num_examples: None for an endless stream.
        lengths: tokens of each example, integers of shape (num_examples,), for --group_by_length; None if all examples
            have the same length, or if the lengths are not known.
        checksum: of what the examples are made of.
        target_bytes: UTF-8 bytes of all targets, for bits per byte; None if not known.
        cuts_documents: whether examples run across the ends of documents, each with `content_size` tokens of the
            corpus. A stream, which is read window by window, then moves the incomplete example at the end of a window
            to the next one.
        min_documents: the fewest documents in a window of a stream.
    """

    lengths: np.ndarray | None = None
    target_bytes: int | None = None
    cuts_documents: bool = False
    min_documents: int = 1

    def __init__(self, block_size: int, stores: list[TokenStore], num_examples: int | None = None):
        self.block_size = block_size
        self.stores = stores
        self.num_examples = num_examples
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._first_number, self._number_step = 0, 1

    def __len__(self) -> int:
        """The number of examples. Raises TypeError for a stream, so that transformers' `has_length` is false."""
        if self.num_examples is None:
            raise TypeError("an endless stream of examples has no length")
        return self.num_examples

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray | int]]:
        """The examples of a batch, which torch's DataLoader fetches in one call."""
        return [self[index] for index in indices]

    @property
    def checksum(self) -> str:
        return "+".join(store.checksum for store in self.stores)

    @property
    def epoch(self) -> int:
        """The epoch of the training. Together with the seed and `number`, it decides an example's random choices."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Tell the examples which epoch of the training it is; without this call, as in evaluation, it is 0.

        Call it before the first worker of a dataloader is forked: from then on the epoch is in shared memory, and
        workers that outlive an epoch see the next one.
        """
        self._epoch.share_memory_().fill_(epoch)

    def set_numbering(self, epoch: int, first: int, step: int) -> None:
        """Make these examples a part of an epoch: example i is number `first + i * step` of it.

        For the windows of a stream. No other process reads them, so this needs no shared memory, unlike `set_epoch`.
        """
        self._epoch.fill_(epoch)
        self._first_number, self._number_step = first, step

    def number(self, index: int) -> int:
        """The number of an example in the epoch. Raises IndexError if there is no such example."""
        self._require(index)
        return self._first_number + index * self._number_step

    def _require(self, index: int) -> None:
        if not 0 <= index < self.num_examples:
            raise IndexError(index)

    def save_state(self, folder: str | Path) -> None:
        """Write this process's part of a checkpoint. A finite dataset needs none: the step tells its position."""

    def load_state(self, folder: str | Path) -> None:
        """Continue from a checkpoint that `save_state` wrote. A finite dataset has nothing to load."""
