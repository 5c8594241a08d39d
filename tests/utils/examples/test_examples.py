"""What every dataset of examples offers: a length or none, the epoch, numbers in the epoch, a state."""

import pickle

import numpy as np
import pytest
import torch
from token_stores import write_store
from transformers.trainer_utils import has_length

from utils.examples.base import Examples
from utils.examples.document_blocks import DocumentBlocks
from utils.examples.packed import PackedBlocks, PackedBlocksWithSpecialTokens
from utils.examples.pairs import Pairs
from utils.examples.prebuilt_pairs import PreprocessedPairs, TextPairs
from utils.examples.sentence_pairs import SentencePairs
from utils.examples.streaming import BlockStream


PREFIX_AND_SUFFIX = ([1, 2], [3])


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path, np.arange(100, 157, dtype=np.uint16), [30, 20, 7])


def test_all_datasets_are_examples():
    for kind in (PackedBlocks, PackedBlocksWithSpecialTokens, DocumentBlocks, BlockStream):
        assert issubclass(kind, Examples)
    for kind in (SentencePairs, TextPairs, PreprocessedPairs):
        assert issubclass(kind, Pairs) and issubclass(kind, Examples)
    assert not issubclass(Examples, torch.utils.data.IterableDataset)


def test_a_stream_has_no_length():
    stream = Examples(block_size=8, stores=[])
    assert stream.num_examples is None
    with pytest.raises(TypeError, match="no length"):
        len(stream)
    assert not has_length(stream)


def test_a_finite_dataset(store, tmp_path):
    blocks = PackedBlocksWithSpecialTokens(store, 13, PREFIX_AND_SUFFIX)
    assert has_length(blocks)
    assert len(blocks) == blocks.num_examples == 6
    assert (blocks.block_size, blocks.stores) == (13, [store])
    assert blocks.lengths is None and blocks.target_bytes is None
    blocks.save_state(tmp_path / "missing")  # neither writes nor reads anything
    blocks.load_state(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_examples_are_numbered_in_the_epoch(store):
    blocks = PackedBlocksWithSpecialTokens(store, 13, PREFIX_AND_SUFFIX)
    assert [example["index"] for example in blocks] == list(range(6))
    blocks.set_numbering(epoch=4, first=21, step=3)
    assert [example["index"] for example in blocks] == [21, 24, 27, 30, 33, 36]
    assert [blocks.number(i) for i in range(6)] == [21, 24, 27, 30, 33, 36]
    assert {example["epoch"] for example in blocks} == {blocks.epoch} == {4}
    for index in (-1, 6):
        with pytest.raises(IndexError):
            blocks.number(index)


def test_shared_memory_is_allocated_only_for_dataloaders(store):
    """Windows of a stream, of which there are thousands, take their epoch from `set_numbering`."""
    blocks = PackedBlocks(store, 13)
    blocks.set_numbering(epoch=2, first=0, step=1)
    assert not blocks._epoch.is_shared()
    blocks.set_epoch(3)
    assert blocks._epoch.is_shared()
    assert blocks.epoch == 3


def _epochs_of_batch(examples):
    return [example["epoch"] for example in examples]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_that_stay_see_the_next_epoch(context, store):
    blocks = PackedBlocksWithSpecialTokens(store, 13, PREFIX_AND_SUFFIX)
    loader = torch.utils.data.DataLoader(
        blocks, 2, num_workers=1, collate_fn=_epochs_of_batch, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 3, 4):
        blocks.set_epoch(epoch)
        assert sum(loader, []) == [epoch] * len(blocks)


def test_a_store_is_pickled_without_its_tokens(store):
    assert len(pickle.dumps(store)) < 1000
