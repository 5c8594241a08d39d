"""Blocks and lines between special tokens: every token once, and each example knows what its masks depend on."""

import json
import logging
import pickle

import numpy as np
import pytest
import torch

from utils.errors import UsageError
from utils.examples.document_blocks import DocumentBlocks
from utils.examples.packed import PackedBlocksWithSpecialTokens, require_one_block
from utils.tokens.token_store import TokenStore


LENGTHS = [5, 0, 12, 1, 30, 0, 0, 7, 2, 0]
FRAME = ([1, 2], [3])


def make_store(folder, with_words: bool = False) -> TokenStore:
    """Documents of LENGTHS tokens, the numbers from 100 on; every third token begins a word."""
    total = sum(LENGTHS)
    np.arange(100, 100 + total, dtype=np.uint16).tofile(folder / "tokens.bin")
    np.cumsum([0, *LENGTHS]).astype(np.int64).tofile(folder / "offsets.bin")
    if with_words:
        (np.arange(total) % 3 == 0).astype(np.uint8).tofile(folder / "word_starts.bin")
    meta = {"documents": len(LENGTHS), "tokens": total, "bytes": 0, "dtype": "uint16"}
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)


def ids_of(blocks) -> list[list[int]]:
    return [example["input_ids"].tolist() for example in blocks.__getitems__(list(range(len(blocks))))]


@pytest.mark.parametrize("frame", [FRAME, ([], [3]), ([1], []), ([], [])])
@pytest.mark.parametrize("block_size", [4, 7, 16, 57, 60, 61, 500])
def test_every_token_once_in_order(frame, block_size, tmp_path):
    blocks = PackedBlocksWithSpecialTokens(make_store(tmp_path), block_size, frame)
    prefix, suffix = frame
    content = []
    for ids in ids_of(blocks):
        assert ids[: len(prefix)] == prefix
        assert ids[len(ids) - len(suffix) :] == suffix
        content.append(ids[len(prefix) : len(ids) - len(suffix)])
    assert sum(content, []) == list(range(100, 157))
    assert {len(ids) for ids in content[:-1]} <= {block_size - len(prefix) - len(suffix)}
    assert len(content[-1]) > 0
    assert blocks.num_tokens == 57
    limited = PackedBlocksWithSpecialTokens(make_store(tmp_path), block_size, frame, max_blocks=2)
    assert ids_of(limited) == ids_of(blocks)[:2]
    assert limited.target_bytes is None


def test_an_example_is_of_the_stores_type_and_knows_itself(tmp_path):
    blocks = PackedBlocksWithSpecialTokens(make_store(tmp_path), 16, FRAME)
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
    """Frame tokens are words of their own, and so is what a block's edge leaves of a word."""
    blocks = blocks_class(make_store(tmp_path, with_words=True), 10, FRAME)
    for example in blocks.__getitems__(list(range(len(blocks)))):
        ids, starts = example["input_ids"].tolist(), example["word_starts"].tolist()
        assert len(starts) == len(ids)
        expected = [i <= 2 or token < 100 or (token - 100) % 3 == 0 for i, token in enumerate(ids)]
        assert starts == expected


@pytest.mark.parametrize("block_size", [4, 8, 15, 33, 100])
def test_lines_are_documents_cut_and_never_empty(block_size, tmp_path, caplog):
    caplog.set_level(logging.INFO, "utils")
    blocks = DocumentBlocks(make_store(tmp_path), block_size, FRAME)
    starts = np.cumsum([0, *LENGTHS])
    documents = [list(range(100 + start, 100 + start + length)) for start, length in zip(starts, LENGTHS)]  # noqa: B905
    content = block_size - 3
    expected = [[1, 2, *document[:content], 3] for document in documents if document]
    assert ids_of(blocks) == expected
    assert blocks.lengths.tolist() == [len(ids) for ids in expected]
    num_cut = sum(max(length - content, 0) for length in LENGTHS)
    assert blocks.num_tokens == 57 - num_cut
    cut_lines = sum(length > content for length in LENGTHS)
    assert f"{num_cut} tokens of {cut_lines} of them cut off by --max_seq_length {block_size}" in caplog.text
    assert ids_of(DocumentBlocks(make_store(tmp_path), block_size, FRAME, max_blocks=3)) == expected[:3]


@pytest.mark.parametrize("blocks_class", [PackedBlocksWithSpecialTokens, DocumentBlocks])
def test_a_frame_needs_room(blocks_class, tmp_path):
    store = make_store(tmp_path)
    with pytest.raises(UsageError, match=r"--max_seq_length 3 .* 3 special tokens .* give 4 or more"):
        blocks_class(store, 3, FRAME)
    assert len(blocks_class(store, 4, FRAME)) == (57 if blocks_class is PackedBlocksWithSpecialTokens else 6)


def test_evaluation_needs_one_whole_block(tmp_path):
    store = make_store(tmp_path)
    require_one_block(PackedBlocksWithSpecialTokens(store, 60, FRAME))
    with pytest.raises(UsageError, match=r"57 tokens.*--block_size 60"):
        require_one_block(PackedBlocksWithSpecialTokens(store, 61, FRAME))


def _epoch_in_worker(examples):
    return [example["epoch"] for example in examples]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_that_stay_see_the_next_epoch(context, tmp_path):
    blocks = PackedBlocksWithSpecialTokens(make_store(tmp_path), 13, FRAME)
    loader = torch.utils.data.DataLoader(
        blocks, 2, num_workers=1, collate_fn=_epoch_in_worker, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 3, 4):
        blocks.set_epoch(epoch)
        assert sum(loader, []) == [epoch] * len(blocks)


def test_packed_blocks_travel_without_their_tokens(tmp_path):
    assert len(pickle.dumps(make_store(tmp_path))) < 1000
