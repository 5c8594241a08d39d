"""Token stores of pairs, whose tokens tell their own places, and the places of A and B in an example."""

from pathlib import Path

import numpy as np
from token_stores import write_store

from utils.tokens.token_store import TokenStore


FIRST = 1000  # the first token of a store, so that token - FIRST is its place


def make_pair_store(folder: Path, documents: list[list[int]], with_words: bool = False) -> TokenStore:
    """Documents of segments with the given numbers of tokens; the tokens are the numbers from FIRST on."""
    lengths = [sum(document) for document in documents]
    segments = [length for document in documents for length in document]
    total = sum(lengths)
    word_starts = (np.arange(total) % 3 == 0).astype(np.uint8) if with_words else None
    tokens = np.arange(FIRST, FIRST + total, dtype=np.uint32)
    return write_store(folder, tokens, lengths, segments, word_starts=word_starts)


def take_apart(example, tokenizer) -> tuple[range, range]:
    """The places of A and of B in the store. Checks special tokens, token types and that both are contiguous."""
    ids = example["input_ids"].tolist()
    assert ids[0] == tokenizer.cls_token_id
    first, last = (index for index, token in enumerate(ids) if token == tokenizer.sep_token_id)
    assert last == len(ids) - 1
    assert example["token_type_ids"].tolist() == [0] * (first + 1) + [1] * (last - first)
    parts = []
    for part in (ids[1:first], ids[first + 1 : last]):
        assert part == list(range(part[0], part[0] + len(part)))
        parts.append(range(part[0] - FIRST, part[0] - FIRST + len(part)))
    return tuple(parts)
