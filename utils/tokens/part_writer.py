"""Write the files of one part of a token store, batch by batch."""

import contextlib
import os
from pathlib import Path

import numpy as np

from utils.tokens.encoder import Encoded, Encoder


class PartWriter(contextlib.AbstractContextManager):
    """Appends encoded documents to the files of a part. Memory use does not grow with the corpus.

    tokens.bin has the ids. lengths.bin and document_bytes.bin have the tokens and the UTF-8 bytes of each document,
    uint32. rows.bin, int64, has the row of each document, if a row was left out. The other files are optional:
    token_bytes.bin, word_starts.bin and segment_lengths.bin, as in `Encoded`.

    Attributes:
        num_rows: rows so far, including those left out.
        num_documents, num_segments, num_tokens: what has been written so far.
        num_bytes: UTF-8 bytes of these documents.
    """

    def __init__(self, folder: Path, encoder: Encoder):
        self.num_rows = self.num_documents = self.num_segments = self.num_tokens = self.num_bytes = 0
        self._pending_bytes = 0  # of documents without a token, counted towards the next token
        self._last_token_bytes = 0
        self._stack = contextlib.ExitStack()
        self._rows_file = folder / "rows.bin"

        def create(name: str, is_needed: bool = True):
            return self._stack.enter_context(open(folder / name, "wb")) if is_needed else None

        self._tokens = create("tokens.bin")
        self._lengths = create("lengths.bin")
        self._document_bytes = create("document_bytes.bin")
        self._rows = create("rows.bin")
        self._token_bytes = create("token_bytes.bin", encoder.count_bytes is not None)
        self._word_starts = create("word_starts.bin", encoder.with_word_starts)
        self._segment_lengths = create("segment_lengths.bin", encoder.segmenter is not None)

    def append(self, encoded: Encoded, rows: list[int], num_rows: int) -> None:
        """Append documents. `rows` are their numbers among the `num_rows` rows of the batch."""
        self._tokens.write(encoded.tokens)
        self._lengths.write(encoded.lengths.astype(np.uint32))
        self._document_bytes.write(encoded.document_bytes.astype(np.uint32))
        self._rows.write(self.num_rows + np.array(rows, dtype=np.int64))
        if self._token_bytes is not None:
            counts = encoded.token_bytes.astype(np.uint32)
            if len(counts):
                counts[0] += self._pending_bytes
                self._pending_bytes = 0
                self._last_token_bytes = int(counts[-1])
            self._token_bytes.write(counts)
            self._pending_bytes += encoded.trailing_bytes
        if self._word_starts is not None:
            self._word_starts.write(encoded.word_starts)
        if self._segment_lengths is not None:
            self._segment_lengths.write(encoded.segment_lengths.astype(np.uint32))
            self.num_segments += len(encoded.segment_lengths)
        self.num_rows += num_rows
        self.num_documents += len(encoded.lengths)
        self.num_tokens += len(encoded.tokens)
        self.num_bytes += int(encoded.document_bytes.sum())

    def __exit__(self, *error) -> None:
        if self._pending_bytes and self.num_tokens:  # no token follows these bytes, so the last one takes them
            self._token_bytes.seek(-4, os.SEEK_END)
            self._token_bytes.write(np.uint32(self._last_token_bytes + self._pending_bytes).tobytes())
        self._stack.close()
        if self.num_rows == self.num_documents:
            self._rows_file.unlink()
