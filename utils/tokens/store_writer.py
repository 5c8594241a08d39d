"""Write the files of a token store, batch by batch."""

import contextlib
import os
from pathlib import Path

import numpy as np

from utils.tokens.encoder import Encoded, Encoder


class StoreWriter(contextlib.AbstractContextManager):
    """Appends encoded documents to the files of a token store. Memory use does not grow with the corpus.

    Attributes:
        num_documents, num_segments, num_tokens: what has been written so far.
        num_bytes: UTF-8 bytes of these documents.
    """

    def __init__(self, folder: Path, encoder: Encoder):
        self.num_documents = self.num_segments = self.num_tokens = self.num_bytes = 0
        self._pending_bytes = 0  # of documents without a token, counted towards the next token
        self._last_token_bytes = 0
        self._stack = contextlib.ExitStack()

        def create(name: str):
            return self._stack.enter_context(open(folder / name, "wb"))

        self._tokens = create("tokens.bin")
        self._offsets = create("offsets.bin")
        self._offsets.write(np.int64(0).tobytes())
        self._token_bytes = create("token_bytes.bin") if encoder.count_bytes is not None else None
        self._word_starts = create("word_starts.bin") if encoder.with_word_starts else None
        self._segment_offsets = None
        if encoder.segmenter is not None:
            self._segment_offsets = create("segment_offsets.bin")
            self._segment_offsets.write(np.int64(0).tobytes())

    def append(self, encoded: Encoded) -> None:
        encoded.tokens.tofile(self._tokens)
        (self.num_tokens + np.cumsum(encoded.lengths)).tofile(self._offsets)
        if self._token_bytes is not None:
            counts = encoded.token_bytes.astype(np.uint32)
            if len(counts):
                counts[0] += self._pending_bytes
                self._pending_bytes = 0
                self._last_token_bytes = int(counts[-1])
            counts.tofile(self._token_bytes)
            self._pending_bytes += encoded.trailing_bytes
        if self._word_starts is not None:
            encoded.word_starts.tofile(self._word_starts)
        if self._segment_offsets is not None:
            (self.num_tokens + np.cumsum(encoded.segment_lengths)).tofile(self._segment_offsets)
            self.num_segments += len(encoded.segment_lengths)
        self.num_documents += len(encoded.lengths)
        self.num_tokens += len(encoded.tokens)
        self.num_bytes += encoded.num_bytes

    def __exit__(self, *error) -> None:
        if self._pending_bytes and self.num_tokens:  # no token follows these bytes, so the last one takes them
            self._token_bytes.seek(-4, os.SEEK_END)
            self._token_bytes.write(np.uint32(self._last_token_bytes + self._pending_bytes).tobytes())
        self._stack.close()
