"""Texts -> token ids, with the bytes of each token, the beginnings of words and the segments where asked for."""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from utils.errors import UsageError
from utils.fingerprint import fingerprint
from utils.text.segmentation import Segmenter
from utils.tokens.token_bytes import TokenBytes


@dataclass
class Encoded:
    """Some documents as ids."""

    tokens: np.ndarray  # of all documents, flat
    lengths: np.ndarray  # tokens of each document
    num_bytes: int  # UTF-8 bytes of all documents
    token_bytes: np.ndarray | None  # of each token
    word_starts: np.ndarray | None  # 1 where a token begins a word
    bytes_after: int  # UTF-8 bytes of the documents without a token that follow the last token
    segment_lengths: np.ndarray | None = None  # tokens of each segment that has one, in order


class Encoder:
    """Texts -> ids; may be called from any number of threads, since the Rust tokenizer lets go of Python's lock.

    With a `segmenter` the segments of a document are tokenized one by one; the document is their ids, one after the
    other.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        append_eos: bool,
        add_special_tokens: bool,
        with_token_bytes: bool,
        with_word_starts: bool,
        segmenter: Segmenter | None = None,
    ):
        assert segmenter is None or not (append_eos or with_token_bytes)  # which are about whole documents
        self.segmenter = segmenter
        self.with_word_starts = with_word_starts
        self.eos_token_id = tokenizer.eos_token_id if append_eos else None
        vocab = tokenizer.get_vocab()
        self.dtype = np.dtype("uint16" if max(vocab.values()) < 2**16 else "uint32")
        self.count_bytes = None
        if tokenizer.is_fast:
            backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy that cuts and pads nothing
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
            encode = backend.encode_batch_fast  # without character offsets and words
            if with_token_bytes or with_word_starts:
                encode = backend.encode_batch
            if with_token_bytes:
                self.count_bytes = TokenBytes(backend)
            self.encode_batch = functools.partial(encode, add_special_tokens=add_special_tokens)
            serialized = [backend.to_str(), backend.encode_special_tokens]
        else:
            options = {"add_special_tokens": add_special_tokens, "verbose": False}
            self.encode_batch = lambda batch: tokenizer(batch, **options).input_ids
            serialized = [type(tokenizer).__name__, sorted(vocab.items()), repr(tokenizer.init_kwargs)]
        self.fingerprint = fingerprint(tokenizer=serialized, eos_token_id=self.eos_token_id)

    def __call__(self, batch: list[str]) -> Encoded:
        if self.segmenter is None:
            return self._encode(batch)
        segments = [self.segmenter(text) for text in batch]
        encoded = self._encode([segment for document in segments for segment in document])
        ends = np.cumsum([0, *encoded.lengths])
        encoded.segment_lengths = encoded.lengths[encoded.lengths > 0]
        encoded.lengths = np.diff(ends[np.cumsum([0, *map(len, segments)])])
        encoded.num_bytes = sum(len(text.encode()) for text in batch)
        return encoded

    def _encode(self, batch: list[str]) -> Encoded:
        documents = [np.empty(0, self.dtype)]
        token_bytes = [np.empty(0, np.int64)]
        word_starts = [np.empty(0, np.uint8)]
        num_bytes = bytes_after = 0
        for text, encoding in zip(batch, self.encode_batch(batch), strict=True):
            ids = np.array(encoding if isinstance(encoding, list) else encoding.ids, dtype=self.dtype)
            if self.eos_token_id is not None and not text:
                ids = ids[:0]  # an empty document has no end, whatever the tokenizer adds to it
            size = len(text.encode())
            num_bytes += size
            if self.count_bytes is None:
                counts = np.empty(0, np.int64)
            elif len(ids) == 0:
                bytes_after += size
                counts = np.empty(0, np.int64)
            else:
                counts = self.count_bytes(encoding, text)
                counts[0] += bytes_after
                bytes_after = 0
            if self.eos_token_id is not None and len(ids) and ids[-1] != self.eos_token_id:
                ids = np.append(ids, self.dtype.type(self.eos_token_id))
                counts = np.append(counts, 0)
            documents.append(ids)
            token_bytes.append(counts)
            if self.with_word_starts:
                word_starts.append(_word_starts(encoding.word_ids, len(ids)))
        return Encoded(
            tokens=np.concatenate(documents),
            lengths=np.array([len(ids) for ids in documents[1:]], dtype=np.int64),
            num_bytes=num_bytes,
            token_bytes=None if self.count_bytes is None else np.concatenate(token_bytes),
            word_starts=np.concatenate(word_starts) if self.with_word_starts else None,
            bytes_after=bytes_after,
        )


def _word_starts(word_ids: list[int | None], num_tokens: int) -> np.ndarray:
    """1 where a token's word is not that of the token before; tokens of no word are words of their own."""
    words = np.array([-1 if word is None else word for word in word_ids[:num_tokens]], dtype=np.int64)
    starts = np.ones(num_tokens, dtype=np.uint8)
    starts[1 : len(words)] = (words[1:] != words[:-1]) | (words[1:] == -1)
    return starts


def map_in_threads(function: Callable, items: Iterable, num_workers: int) -> Iterator:
    """`map(function, items)` in threads, in order, with at most two items a thread read ahead.

    One thread a batch with the tokenizer's own parallelism off was 1.1x faster than that parallelism on two cores,
    and threads cannot deadlock as forked processes can.
    """
    executor = ThreadPoolExecutor(num_workers)
    parallelism = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        pending = deque()
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > 2 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Not waited for: what ends this generator may be the garbage collector, in a thread that holds their lock.
        executor.shutdown(wait=False, cancel_futures=True)
        if parallelism is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = parallelism


def require_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot say where words begin."""
    if not tokenizer.is_fast:
        raise UsageError("--whole_word_mask: a slow tokenizer does not say where words begin; use a fast one")
    word_ids = tokenizer.backend_tokenizer.encode("two words here", add_special_tokens=False).word_ids
    if len(set(word_ids)) < 2:
        raise UsageError("--whole_word_mask: this tokenizer does not cut text into words; leave it out")
