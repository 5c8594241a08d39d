"""The order of examples: a function of seed and epoch, divided among any number of processes."""

import itertools

import numpy as np
import pytest
import torch

from utils.examples.base import Examples
from utils.training.batch_sampler import EpochBatches, epoch_order
from utils.training.dataloaders import FILLERS, TrainingLoader


class Numbers(Examples):
    """Each example is its index; the indices that were read are recorded."""

    def __init__(self, length: int):
        super().__init__(block_size=1, stores=[], num_examples=length)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return index


def collate(examples):
    return {"input_ids": torch.tensor(examples), "labels": torch.tensor(examples), "labels_2": torch.tensor(examples)}


def make_loader(num_examples, batch_size, num_processes=1, process_index=0, **options):
    batches = EpochBatches(num_examples, batch_size, 1, num_processes, process_index, seed=3)
    return TrainingLoader(Numbers(num_examples), batches, collate, ["labels", "labels_2"], **options)


def updates(num_examples, batch_size, accumulation, processes, epoch, **options):
    """The examples of each update, put together in the order of steps and processes."""
    parts = []
    for process in range(processes):
        batches = EpochBatches(num_examples, batch_size, accumulation, processes, process, seed=7, **options)
        batches.set_epoch(epoch)
        parts.append(list(batches))
        assert len(parts[-1]) == len(batches)
    steps = [sum(step, []) for step in zip(*parts, strict=True)]
    sizes = [len(batch) for part in parts for batch in part]
    assert not sizes or max(sizes) <= batch_size
    return [sum(steps[start : start + accumulation], []) for start in range(0, len(steps), accumulation)]


@pytest.mark.parametrize("num_examples", [1, 3, 8, 9, 15, 16, 17, 33, 100, 1001])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_global_batches_do_not_depend_on_processes(num_examples, with_lengths):
    options = {"lengths": np.random.default_rng(0).integers(5, 50, num_examples)} if with_lengths else {}
    for epoch in (0, 1):
        expected = updates(num_examples, 8, 1, 1, epoch, **options)
        assert sorted(sum(expected, [])) == list(range(num_examples))  # each once, none repeated
        assert [len(update) for update in expected[:-1]] == [8] * (len(expected) - 1)
        for batch_size, accumulation, processes in [(4, 1, 2), (2, 1, 4), (1, 1, 8), (4, 2, 1), (1, 2, 4), (2, 4, 1)]:
            assert updates(num_examples, batch_size, accumulation, processes, epoch, **options) == expected


def test_the_last_step_is_shared_evenly():
    sizes = [[len(batch) for batch in EpochBatches(13, 2, 1, 4, process, seed=0)] for process in range(4)]
    assert sizes == [[2, 1], [2, 1], [2, 1], [2, 2]]
    sizes = [[len(batch) for batch in EpochBatches(10, 2, 1, 4, process, seed=0)] for process in range(4)]
    assert sizes == [[2, 0], [2, 1], [2, 0], [2, 1]]


def test_drop_last_keeps_whole_updates_only():
    assert updates(23, 2, 2, 2, 0, drop_last=True) == updates(23, 8, 1, 1, 0)[:2]
    assert updates(7, 2, 2, 2, 0, drop_last=True) == []


@pytest.mark.parametrize("lengths", [None, np.random.default_rng(0).integers(5, 100, 1000)])
def test_order_is_a_function_of_seed_and_epoch(lengths):
    order = epoch_order(1000, seed=1, epoch=0, lengths=lengths, batch_size=8).tolist()
    assert sorted(order) == list(range(1000))
    torch.rand(10)
    np.random.rand(10)
    assert epoch_order(1000, 1, 0, lengths, 8).tolist() == order
    others = [epoch_order(1000, seed, epoch, lengths, 8).tolist() for seed, epoch in ((1, 1), (2, 0), (0, 1))]
    assert all(first != second for first, second in itertools.combinations([order, *others], 2))


def test_neighbours_have_similar_lengths():
    lengths = np.random.default_rng(0).integers(5, 100, 1000)
    order = epoch_order(1000, 1, 0, lengths, batch_size=8)
    spread = [np.ptp(lengths[order[start : start + 8]]) for start in range(0, 1000, 8)]
    assert np.mean(spread) < 10 < np.mean([np.ptp(lengths[start : start + 8]) for start in range(0, 1000, 8)]) / 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_without_examples_gets_an_empty_batch(workers):
    batches = [list(make_loader(5, 2, 4, process, num_workers=workers)) for process in range(4)]
    assert [len(part) for part in batches] == [1] * 4
    examples = [batch["input_ids"].tolist() for part in batches for batch in part if FILLERS not in batch]
    assert sorted(sum(examples, [])) == list(range(5))
    batches = [list(make_loader(2, 1, 4, process, num_workers=workers))[0] for process in range(4)]
    empty = [batch for batch in batches if FILLERS in batch]
    assert len(empty) == 2
    for batch in empty:
        assert batch["labels"].tolist() == batch["labels_2"].tolist() == [-100]


def test_skipped_steps_are_not_read():
    loader = make_loader(10_000, 2)
    loader.set_epoch(5)
    expected = list(loader)
    loader.dataset.read.clear()
    loader.set_epoch(5, first_step=4_990)
    rest = iter(loader)
    assert torch.equal(next(rest)["input_ids"], expected[4_990]["input_ids"])
    assert len(loader.dataset.read) == 2
    assert len(list(rest)) == 9
    assert len(loader) == 5_000


def test_dataset_is_told_the_epoch():
    loader = make_loader(10, 2)
    loader.set_epoch(4)
    assert loader.dataset.epoch == loader.batch_sampler.epoch == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(workers):
    before = torch.get_rng_state()
    list(make_loader(10, 2, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
