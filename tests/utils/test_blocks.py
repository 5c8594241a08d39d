"""Blocks: every token once, in order."""

import json

import numpy as np
import pytest

from utils.errors import UsageError
from utils.examples.packed import PackedBlocks, require_one_block
from utils.tokens.token_store import TokenStore


@pytest.fixture
def store(tmp_path):
    """1,003 tokens, each of which stands for 1 to 9 bytes."""
    tokens = np.random.default_rng(0).integers(0, 300, 1003)
    token_bytes = np.random.default_rng(1).integers(1, 10, 1003)
    tokens.astype(np.uint16).tofile(tmp_path / "tokens.bin")
    token_bytes.astype(np.uint32).tofile(tmp_path / "token_bytes.bin")
    np.array([0, 1003], dtype=np.int64).tofile(tmp_path / "offsets.bin")
    meta = {"documents": 1, "tokens": 1003, "bytes": int(token_bytes.sum()), "dtype": "uint16"}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return TokenStore(tmp_path)


@pytest.mark.parametrize("block_size", [2, 7, 17, 59, 1002, 1003, 1004, 5000])
def test_every_token_once_in_order(store, block_size):
    blocks = PackedBlocks(store, block_size)
    examples = [block["input_ids"] for block in blocks.__getitems__(list(range(len(blocks))))]
    np.testing.assert_array_equal(np.concatenate(examples), store.tokens)
    assert {len(example) for example in examples[:-1]} <= {block_size}
    assert blocks.num_tokens == 1003


@pytest.mark.parametrize("block_size", [2, 7, 59, 1003])
@pytest.mark.parametrize("max_blocks", [None, 1, 3, 10_000])
def test_target_bytes_leave_out_the_first_token_of_each_block(store, block_size, max_blocks):
    starts = list(range(0, 1003, block_size))[:max_blocks]
    expected = sum(int(store.token_bytes[start + 1 : start + block_size].sum()) for start in starts)
    assert PackedBlocks(store, block_size, max_blocks).target_bytes == expected


def test_iteration_ends(store):
    blocks = PackedBlocks(store, 100, max_blocks=4)
    assert len(list(blocks)) == len(blocks) == 4
    with pytest.raises(IndexError):
        blocks[4]


def test_evaluation_needs_one_whole_block(store):
    require_one_block(PackedBlocks(store, 1003))
    with pytest.raises(UsageError, match=r"1,003 tokens.*--block_size 1003"):
        require_one_block(PackedBlocks(store, 1004))
