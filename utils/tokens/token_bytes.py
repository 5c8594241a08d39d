"""Count the UTF-8 bytes that each token stands for, which makes bits per byte exact."""

import json
import re

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel


class TokenByteCounter:
    """Assigns each byte of a text to exactly one of its tokens.

    A byte-level token stands for its own bytes. With other tokenizers, the character offsets tell where a token ends,
    and it stands for the text from the end of the previous token to its own end. This includes any spaces that the
    tokenizer dropped in between; the last token also stands for whatever was dropped after it. Tokens that a template
    adds (BOS, CLS, ...) stand for no text.
    """

    def __init__(self, tokenizer: Tokenizer):
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        size = max(vocab.values()) + 1
        self._is_one_byte = np.zeros(size, dtype=bool)  # such as the <0x0A> of byte fallback
        self.own_bytes = np.zeros(size, dtype=np.int64)
        for token, index in vocab.items():
            self._is_one_byte[index] = re.fullmatch(r"<0x[0-9A-F]{2}>", token) is not None
            self.own_bytes[index] = len(token.encode()) if token in added else len(token)
        self.is_byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["decoder"]) and all(
            token in added or set(token) <= _BYTE_LEVEL_ALPHABET for token in vocab
        )

    def __call__(self, encoding: Encoding, text: str) -> np.ndarray:
        """Bytes of each token, int64 of shape (tokens,), which add up to the UTF-8 length of `text`.

        `encoding` must have character offsets, as `Tokenizer.encode_batch` returns them, and at least one token.
        """
        ids = np.array(encoding.ids)
        data = text.encode()
        if self.is_byte_level:
            counts = np.where(np.array(encoding.special_tokens_mask, dtype=bool), 0, self.own_bytes[ids])
            if counts.sum() == len(data):
                return counts
        ends = np.maximum.accumulate(np.array(encoding.offsets)[:, 1])
        if len(data) != len(text):
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
            widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
            ends = np.concatenate([[0], np.cumsum(widths)])[ends]
        counts = np.diff(ends, prepend=0)
        # The byte tokens of a character all end where it ends. All but the first take their one byte from the first.
        takers = np.flatnonzero((counts == 0) & self._is_one_byte[ids])
        givers = np.maximum.accumulate(np.where(counts > 0, np.arange(len(counts)), 0))[takers]
        np.subtract.at(counts, givers, 1)
        counts[takers] = 1
        counts[-1] += len(data) - ends[-1]
        return counts


_BYTE_LEVEL_ALPHABET = set(ByteLevel.alphabet())
