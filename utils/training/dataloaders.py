"""Dataloaders for training and evaluation, and the end of their worker processes."""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader

from utils.examples.base import Examples
from utils.training.batch_sampler import EpochBatches
from utils.training.signals import ignore_signals


FILLERS = "num_fillers"  # key of a batch: how many of its rows, at the end, are no examples to train on


class TrainingLoader(DataLoader):
    """The batches of this process, epoch by epoch; see EpochBatches.

    It draws nothing from torch's global generator, so that dropout continues after a resumption as it would have.

    Args:
        dataset: is told the epoch.
        batches: which examples.
        collator: examples -> a batch.
        label_names: the keys of a batch that hold targets, -100 where there is none.
        fixed_size: rows of every batch, also of the last one of an epoch: torch.compile compiles for each shape.
        kwargs: as for torch's DataLoader.
    """

    def __init__(
        self,
        dataset: Examples,
        batches: EpochBatches,
        collator: Callable,
        label_names: Sequence[str],
        fixed_size: int | None = None,
        **kwargs,
    ):
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=_CollateWithFillers(collator, dataset, label_names, fixed_size or 1),
            generator=torch.Generator().manual_seed(batches.seed),
            worker_init_fn=ignore_signals,
            **kwargs,
        )

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        self.batch_sampler.set_epoch(epoch, first_step)
        self.dataset.set_epoch(epoch)


class _CollateWithFillers:
    """The collator, with examples without targets added to a batch that has fewer than `min_size`.

    A process that gets no example in the last, small step of an epoch still takes part in the exchange of gradients.
    Losses are sums over targets, divided by the targets of all processes: a row without targets adds nothing.
    """

    def __init__(self, collator: Callable, dataset: Examples, label_names: Sequence[str], min_size: int):
        self.collator = collator
        self.dataset = dataset
        self.label_names = label_names
        self.min_size = min_size

    def __call__(self, examples: list) -> dict[str, torch.Tensor | int]:
        num_fillers = max(self.min_size - len(examples), 0)
        if not num_fillers:
            return self.collator(examples)
        batch = self.collator([*examples, *num_fillers * [self.dataset[0]]])
        for name in self.label_names:
            batch[name][len(examples) :] = -100
        return batch | {FILLERS: num_fillers}


def evaluation_loader(dataset: Examples, batches: list[range], collator: Callable, args) -> DataLoader:
    """The given batches of the dataset, each a range of indices, in order.

    Args:
        args: TrainingArguments.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # its own: evaluating must not change the dropout of the steps that follow
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
    )


@contextlib.contextmanager
def no_worker_left_behind() -> Iterator[None]:
    """If the block ends with an exception, kill the daemonic child processes that were started in it.

    Dataloader workers ignore SIGTERM (see `ignore_signals`). When the interpreter exits, multiprocessing would send
    them SIGTERM and wait forever.
    """
    before = multiprocessing.active_children()
    try:
        yield
    except BaseException:
        workers = [child for child in multiprocessing.active_children() if child.daemon and child not in before]
        is_main_thread = threading.current_thread() is threading.main_thread()
        if workers and is_main_thread:  # torch's handler would report each as a worker that died unexpectedly
            old_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
        if workers and is_main_thread:
            signal.signal(signal.SIGCHLD, old_handler)
        raise
