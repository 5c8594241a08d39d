"""Which example comes when: an order that seed and epoch decide, dealt out to any number of processes."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from utils.training.signals import leave_signals_to_the_main_process


class EmptyBatch(dict):
    """A batch without targets, for a process that has no part in the last, small step of an epoch.

    Losses are sums over targets, divided by the number of targets of all processes: it adds nothing to either, and the
    process takes part in the exchange of gradients.
    """


def epoch_order(
    num_examples: int, seed: int, epoch: int, lengths: Sequence[int] | None = None, batch_size: int = 1
) -> np.ndarray:
    """A random permutation of the indices, int64 of shape (num_examples,), which the arguments alone decide.

    With `lengths`, neighbours have similar ones, for batches of `batch_size`: the grouping is Trainer's (random
    megabatches of 50 batches, each sorted by length).
    """
    if lengths is None:
        return np.random.default_rng((seed, epoch)).permutation(num_examples)
    bits = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return np.array(
        get_length_grouped_indices(list(lengths), batch_size, generator=torch.Generator().manual_seed(bits))
    )


class EpochBatches(Sampler):
    """The batches of one process in one epoch, as lists of indices: a batch sampler for a DataLoader.

    The examples of update u are those in the places u * global_batch_size to (u + 1) * global_batch_size of the
    epoch's order, so that they are the same for any number of processes and accumulation steps whose product with
    `batch_size` is the same. Each step takes the next num_processes * batch_size of them, each process an equal part.
    In the last step of an epoch the parts are smaller, and may be empty: no example is repeated to fill them.

    Batches that a resumed run skips are only counted off; no example is read.

    Args:
        num_examples: of the data set.
        batch_size: examples of one process in one step.
        accumulation_steps: steps of an update.
        num_processes, process_index: who shares the steps.
        seed: with the epoch, decides the order.
        lengths: of the examples, to put those of similar lengths together; None for a plain random order.
        drop_last: leave out the last examples of an epoch, which do not fill an update.
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
        self._end = num_examples - num_examples % self.global_batch_size if drop_last else num_examples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Steps of an epoch, the same for all processes."""
        return -(-self._end // self.step_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.num_examples, self.seed, self.epoch, self.lengths, self.global_batch_size)
        for start in range(0, self._end, self.step_size):
            size = min(self.step_size, self._end - start)
            parts = self.process_index, self.process_index + 1
            first, last = (start + size * part // self.num_processes for part in parts)
            yield order[first:last].tolist()


class TrainingLoader(DataLoader):
    """The batches of this process, epoch after epoch; see EpochBatches.

    It draws nothing from torch's global generator, so that dropout goes on after a resumption as it would have.

    Args:
        dataset: a map-style data set; if it has `set_epoch`, it is told the epoch.
        batches: which examples.
        collator: examples -> a batch.
        label_names: the keys of a batch that hold targets, -100 where there is none.
        kwargs: as for torch's DataLoader.
    """

    def __init__(
        self, dataset: Dataset, batches: EpochBatches, collator: Callable, label_names: Sequence[str], **kwargs
    ):
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=_CollateOrStandIn(collator, dataset, label_names),
            generator=torch.Generator().manual_seed(batches.seed),
            worker_init_fn=leave_signals_to_the_main_process,
            **kwargs,
        )

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


class _CollateOrStandIn:
    """The collator, and a stand-in where there is nothing to collate."""

    def __init__(self, collator: Callable, dataset: Dataset, label_names: Sequence[str]):
        self.collator = collator
        self.dataset = dataset
        self.label_names = label_names

    def __call__(self, examples: list) -> dict[str, torch.Tensor]:
        if examples:
            return self.collator(examples)
        batch = self.collator([self.dataset[0]])
        for name in self.label_names:
            batch[name].fill_(-100)
        return EmptyBatch(batch)
