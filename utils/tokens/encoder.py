"""Encode texts as token ids; optionally with the bytes of each token, word boundaries and segments."""

import functools
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
from utils.tokens.token_bytes import TokenByteCounter


@dataclass
class Encoded:
    """A batch of documents as token ids.

    Attributes:
        tokens: uint16 or uint32, shape (tokens,), the ids of all documents, concatenated.
        lengths: int64, shape (documents,), the number of tokens in each document.
        num_bytes: UTF-8 bytes of all documents.
        token_bytes: int64, shape (tokens,), the UTF-8 bytes that each token stands for; None if not requested.
        word_starts: uint8, shape (tokens,), 1 where a token starts a word; None if not requested.
        trailing_bytes: UTF-8 bytes of the documents after the last token. They have no token of their own.
        segment_lengths: int64, the number of tokens in each segment that has any, in order; None without a segmenter.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    num_bytes: int
    token_bytes: np.ndarray | None
    word_starts: np.ndarray | None
    trailing_bytes: int
    segment_lengths: np.ndarray | None = None


class Encoder:
    """Encodes batches of texts. Thread-safe; threads run in parallel, since the Rust tokenizer releases the GIL.

    With a `segmenter`, the segments of a document are tokenized one by one, and the document is the concatenation of
    their ids.
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
        assert segmenter is None or not (append_eos or with_token_bytes)  # these two apply to whole documents
        self.segmenter = segmenter
        self.with_word_starts = with_word_starts
        self.eos_token_id = tokenizer.eos_token_id if append_eos else None
        vocab = tokenizer.get_vocab()
        self.dtype = np.dtype("uint16" if max(vocab.values()) < 2**16 else "uint32")
        self.count_bytes = None
        if tokenizer.is_fast:
            # A copy, because the tokenizer itself may truncate and pad.
            backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
            encode = backend.encode_batch_fast  # does not compute character offsets and words
            if with_token_bytes or with_word_starts:
                encode = backend.encode_batch
            if with_token_bytes:
                self.count_bytes = TokenByteCounter(backend)
            self.encode_batch = functools.partial(encode, add_special_tokens=add_special_tokens)
            serialized = [backend.to_str(), backend.encode_special_tokens]
        else:
            options = {"add_special_tokens": add_special_tokens, "verbose": False}
            self.encode_batch = lambda batch: tokenizer(batch, **options).input_ids if batch else []
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
        num_bytes = trailing_bytes = 0
        for text, encoding in zip(batch, self.encode_batch(batch), strict=True):
            ids = np.array(encoding if isinstance(encoding, list) else encoding.ids, dtype=self.dtype)
            if self.eos_token_id is not None and not text:
                ids = ids[:0]  # no end-of-text token for an empty document, whatever the tokenizer adds
            size = len(text.encode())
            num_bytes += size
            if self.count_bytes is None:
                counts = np.empty(0, np.int64)
            elif len(ids) == 0:
                trailing_bytes += size
                counts = np.empty(0, np.int64)
            else:
                counts = self.count_bytes(encoding, text)
                counts[0] += trailing_bytes
                trailing_bytes = 0
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
            trailing_bytes=trailing_bytes,
        )


def _word_starts(word_ids: list[int | None], num_tokens: int) -> np.ndarray:
    """1 where a token's word differs from the previous token's; a token without a word is a word of its own."""
    words = np.array([-1 if word is None else word for word in word_ids[:num_tokens]], dtype=np.int64)
    starts = np.ones(num_tokens, dtype=np.uint8)
    starts[1 : len(words)] = (words[1:] != words[:-1]) | (words[1:] == -1)
    return starts


def map_in_threads(function: Callable, items: Iterable, num_workers: int) -> Iterator:
    """`map(function, items)` in threads, in order, reading at most two items per thread ahead.

    Threads instead of processes: the Rust tokenizer releases the GIL, and threads cannot deadlock as forked processes
    can. Unless TOKENIZERS_PARALLELISM=false is set, the tokenizers library also spreads each batch over threads of its
    own, on all cores. With one thread per core here, this makes no difference (two cores, 3 MB of text: 0.8 to 1.03
    times the wall time without it).
    """
    executor = ThreadPoolExecutor(num_workers)
    try:
        pending = deque()
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > 2 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Do not wait: the garbage collector may close this generator, in a thread that holds the executor's lock.
        executor.shutdown(wait=False, cancel_futures=True)


def require_word_boundaries(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UsageError if the tokenizer cannot report where words start."""
    if not tokenizer.is_fast:
        raise UsageError("--whole_word_mask: a slow tokenizer does not report word boundaries; use a fast one")
    word_ids = tokenizer.backend_tokenizer.encode("two words here", add_special_tokens=False).word_ids
    if len(set(word_ids)) < 2:
        raise UsageError("--whole_word_mask: this tokenizer does not split text into words; leave the flag out")
