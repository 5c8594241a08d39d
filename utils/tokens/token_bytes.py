"""How many UTF-8 bytes of the text each token stands for: what makes bits per byte exact."""

import json
import re

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel


class TokenBytes:
    """Deals the bytes of a text out to its tokens, every byte to exactly one.

    A byte-level token stands for its own bytes. Of other tokenizers the character offsets say where a token ends; it
    stands for what lies between the end of the token before and its own, so for the spaces that the tokenizer dropped
    before it too, and the last token also for what was dropped after it. Tokens that a template adds (BOS, CLS, ...)
    stand for nothing.
    """

    def __init__(self, tokenizer: Tokenizer):
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        size = max(vocab.values()) + 1
        self._is_one_byte = np.zeros(size, dtype=bool)  # the <0x0A> of byte fallback
        self._own_bytes = np.zeros(size, dtype=np.int64)
        for token, index in vocab.items():
            self._is_one_byte[index] = re.fullmatch(r"<0x[0-9A-F]{2}>", token) is not None
            self._own_bytes[index] = len(token.encode()) if token in added else len(token)
        self._is_byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["decoder"]) and all(
            token in added or set(token) <= _BYTE_LEVEL_ALPHABET for token in vocab
        )

    def __call__(self, encoding: Encoding, text: str) -> np.ndarray:
        """Bytes of each token, int64 of shape (tokens,); they add up to the UTF-8 length of `text`.

        `encoding` has character offsets, as `Tokenizer.encode_batch` gives them, and at least one token.
        """
        ids = np.array(encoding.ids)
        data = text.encode()
        if self._is_byte_level:
            counts = np.where(np.array(encoding.special_tokens_mask, dtype=bool), 0, self._own_bytes[ids])
            if counts.sum() == len(data):
                return counts
        ends = np.maximum.accumulate(np.array(encoding.offsets)[:, 1])
        if len(data) != len(text):
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
            widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
            ends = np.concatenate([[0], np.cumsum(widths)])[ends]
        counts = np.diff(ends, prepend=0)
        # The byte tokens of one character all end with it: each but the first takes its one byte from the first.
        takers = np.flatnonzero((counts == 0) & self._is_one_byte[ids])
        givers = np.maximum.accumulate(np.where(counts > 0, np.arange(len(counts)), 0))[takers]
        np.subtract.at(counts, givers, 1)
        counts[takers] = 1
        counts[-1] += len(data) - ends[-1]
        return counts


_BYTE_LEVEL_ALPHABET = set(ByteLevel.alphabet())
