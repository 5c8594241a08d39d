"""Packed blocks, with and without special tokens: every token once, in order."""

import numpy as np
import pytest
from token_stores import write_store

from utils.errors import UsageError
from utils.examples.document_blocks import DocumentBlocks
from utils.examples.packed import PackedBlocks, PackedBlocksWithSpecialTokens, require_one_block


LENGTHS = [5, 0, 12, 1, 30, 0, 0, 7, 2, 0]  # 57 tokens
PREFIX_AND_SUFFIX = ([1, 2], [3])


@pytest.fixture
def store(tmp_path):
    """1,003 tokens, each of which stands for 1 to 9 bytes."""
    tokens = np.random.default_rng(0).integers(0, 300, 1003)
    token_bytes = np.random.default_rng(1).integers(1, 10, 1003).astype(np.uint32)
    return write_store(tmp_path / "store", tokens.astype(np.uint16), [1003], token_bytes=token_bytes)


@pytest.fixture
def small_store(tmp_path):
    """Documents of LENGTHS tokens, the numbers from 100 on."""
    return write_store(tmp_path / "small-store", np.arange(100, 157, dtype=np.uint16), LENGTHS)


def ids_of(blocks) -> list[list[int]]:
    return [example["input_ids"].tolist() for example in blocks.__getitems__(list(range(len(blocks))))]


# Without special tokens


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


# With special tokens


@pytest.mark.parametrize("prefix_and_suffix", [PREFIX_AND_SUFFIX, ([], [3]), ([1], []), ([], [])])
@pytest.mark.parametrize("block_size", [4, 7, 16, 57, 60, 61, 500])
def test_every_token_once_between_special_tokens(prefix_and_suffix, block_size, small_store):
    blocks = PackedBlocksWithSpecialTokens(small_store, block_size, prefix_and_suffix)
    prefix, suffix = prefix_and_suffix
    content = []
    for ids in ids_of(blocks):
        assert ids[: len(prefix)] == prefix
        assert ids[len(ids) - len(suffix) :] == suffix
        content.append(ids[len(prefix) : len(ids) - len(suffix)])
    assert sum(content, []) == list(range(100, 157))
    assert {len(ids) for ids in content[:-1]} <= {block_size - len(prefix) - len(suffix)}
    assert len(content[-1]) > 0
    assert blocks.num_tokens == 57
    limited = PackedBlocksWithSpecialTokens(small_store, block_size, prefix_and_suffix, max_blocks=2)
    assert ids_of(limited) == ids_of(blocks)[:2]
    assert limited.target_bytes is None


def test_an_example_has_the_stores_type_and_knows_its_number_and_epoch(small_store):
    blocks = PackedBlocksWithSpecialTokens(small_store, 16, PREFIX_AND_SUFFIX)
    example = blocks[2]
    assert set(example) == {"input_ids", "index", "epoch"}
    assert example["input_ids"].dtype == np.uint16
    assert (example["index"], example["epoch"]) == (2, 0)
    blocks.set_epoch(5)
    assert blocks[2]["epoch"] == 5
    with pytest.raises(IndexError):
        blocks[len(blocks)]


@pytest.mark.parametrize("blocks_class", [PackedBlocksWithSpecialTokens, DocumentBlocks])
def test_word_starts_lie_on_their_tokens(blocks_class, tmp_path):
    """Every third token begins a word. So do special tokens, and a token whose word was cut at the edge of a block."""
    word_starts = (np.arange(57) % 3 == 0).astype(np.uint8)
    store = write_store(tmp_path / "words", np.arange(100, 157, dtype=np.uint16), LENGTHS, word_starts=word_starts)
    blocks = blocks_class(store, 10, PREFIX_AND_SUFFIX)
    for example in blocks.__getitems__(list(range(len(blocks)))):
        ids, starts = example["input_ids"].tolist(), example["word_starts"].tolist()
        assert len(starts) == len(ids)
        expected = [i <= 2 or token < 100 or (token - 100) % 3 == 0 for i, token in enumerate(ids)]
        assert starts == expected


@pytest.mark.parametrize("blocks_class", [PackedBlocksWithSpecialTokens, DocumentBlocks])
def test_special_tokens_leave_room_for_text(blocks_class, small_store):
    with pytest.raises(UsageError, match=r"--block_size 3 .* 3 special tokens .* give 4 or more"):
        blocks_class(small_store, 3, PREFIX_AND_SUFFIX)
    expected = 57 if blocks_class is PackedBlocksWithSpecialTokens else 6
    assert len(blocks_class(small_store, 4, PREFIX_AND_SUFFIX)) == expected


def test_evaluation_needs_one_whole_block_with_special_tokens(small_store):
    require_one_block(PackedBlocksWithSpecialTokens(small_store, 60, PREFIX_AND_SUFFIX))
    with pytest.raises(UsageError, match=r"57 tokens.*--block_size 60"):
        require_one_block(PackedBlocksWithSpecialTokens(small_store, 61, PREFIX_AND_SUFFIX))
