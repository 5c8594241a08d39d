"""One document per example: truncated, between special tokens, never empty."""

import logging

import numpy as np
import pytest
from token_stores import write_store

from utils.examples.document_blocks import DocumentBlocks


LENGTHS = [5, 0, 12, 1, 30, 0, 0, 7, 2, 0]


@pytest.mark.parametrize("block_size", [4, 8, 15, 33, 100])
def test_documents_are_truncated_and_never_empty(block_size, tmp_path, caplog):
    caplog.set_level(logging.INFO, "utils")
    store = write_store(tmp_path, np.arange(100, 157, dtype=np.uint16), LENGTHS)
    blocks = DocumentBlocks(store, block_size, ([1, 2], [3]))
    starts = np.cumsum([0, *LENGTHS])
    documents = [list(range(100 + start, 100 + start + length)) for start, length in zip(starts, LENGTHS)]  # noqa: B905
    content = block_size - 3
    expected = [[1, 2, *document[:content], 3] for document in documents if document]
    assert [blocks[i]["input_ids"].tolist() for i in range(len(blocks))] == expected
    assert blocks.lengths.tolist() == [len(ids) for ids in expected]
    num_cut_off = sum(max(length - content, 0) for length in LENGTHS)
    assert blocks.num_tokens == 57 - num_cut_off
    num_truncated = sum(length > content for length in LENGTHS)
    assert f"{num_cut_off} tokens of {num_truncated} of them cut off by --block_size {block_size}" in caplog.text
    limited = DocumentBlocks(store, block_size, ([1, 2], [3]), max_blocks=3)
    assert [limited[i]["input_ids"].tolist() for i in range(len(limited))] == expected[:3]
    with pytest.raises(IndexError):
        limited[3]
