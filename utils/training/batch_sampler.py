"""The order of training examples: a function of seed and epoch, divided among any number of processes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


def epoch_order(
    num_examples: int, seed: int, epoch: int, lengths: Sequence[int] | None = None, batch_size: int = 1
) -> np.ndarray:
    """A random permutation of the indices, int64 of shape (num_examples,), that depends on the arguments alone.

    With `lengths`, neighbors have similar lengths, for batches of `batch_size`. The grouping is that of transformers:
    random megabatches of 50 batches, each sorted by length.
    """
    if lengths is None:
        return np.random.default_rng((seed, epoch)).permutation(num_examples)
    bits = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return np.array(
        get_length_grouped_indices(list(lengths), batch_size, generator=torch.Generator().manual_seed(bits))
    )


class EpochBatches(Sampler):
    """The batches of one process in one epoch, as lists of indices: a batch sampler for a DataLoader.

    Update u trains on the examples at positions u * global_batch_size to (u + 1) * global_batch_size of the epoch's
    order. These are the same for all numbers of processes and accumulation steps with the same global batch size. Each
    step takes the next num_processes * batch_size of them and gives each process an equal part. In the last step of an
    epoch the parts are smaller, and may be empty: no example is repeated to fill them.

    Args:
        num_examples: in the dataset.
        batch_size: examples of one process in one step.
        accumulation_steps: steps per update.
        num_processes, process_index: how many processes share the steps, and which one this is.
        seed: determines the order, together with the epoch.
        lengths: of the examples, to batch those of similar lengths together; None for a uniformly random order.
        drop_last: leave out the last examples of an epoch if they do not fill an update.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        accumulation_steps: int,
        num_processes: int,
        process_index: int,
        seed: int,
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
    ):
        self.num_examples = num_examples
        self.step_size = batch_size * num_processes
        self.global_batch_size = self.step_size * accumulation_steps
        self.num_processes = num_processes
        self.process_index = process_index
        self.seed = seed
        self.lengths = lengths
        self.epoch = 0
        self.first_step = 0
        self._end = num_examples - num_examples % self.global_batch_size if drop_last else num_examples

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch, and the step in it to begin with. Skipping steps costs nothing: no example is read."""
        self.epoch = epoch
        self.first_step = first_step

    def __len__(self) -> int:
        """Steps of an epoch, the same for all processes."""
        return -(-self._end // self.step_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.num_examples, self.seed, self.epoch, self.lengths, self.global_batch_size)
        for start in range(self.first_step * self.step_size, self._end, self.step_size):
            size = min(self.step_size, self._end - start)
            parts = self.process_index, self.process_index + 1
            first, last = (start + size * part // self.num_processes for part in parts)
            yield order[first:last].tolist()
