"""Encode texts as token ids; optionally with the bytes of each token, word boundaries and segments."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import tokenizers
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from utils.fingerprint import fingerprint
from utils.text.segmentation import Segmenter
from utils.tokens.exactness import hard_texts
from utils.tokens.fast_encoder import FastEncoder, Unsupported, load_fast_encoder
from utils.tokens.template import tokens_around
from utils.tokens.token_bytes import TokenByteCounter
from utils.tokens.word_starts import word_pieces, word_starts


@dataclass
class Encoded:
    """A batch of documents as token ids.

    Attributes:
        tokens: uint16 or uint32, shape (tokens,), the ids of all documents, concatenated.
        lengths: int64, shape (documents,), the number of tokens in each document.
        document_bytes: int64, shape (documents,), the UTF-8 bytes of each document.
        token_bytes: int64, shape (tokens,), the UTF-8 bytes that each token stands for; None if not requested.
        word_starts: uint8, shape (tokens,), 1 where a token starts a word; None if not requested.
        trailing_bytes: UTF-8 bytes of the documents after the last token. They have no token of their own.
        segment_lengths: int64, the number of tokens in each segment that has any, in order; None without a segmenter.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    document_bytes: np.ndarray
    token_bytes: np.ndarray | None
    word_starts: np.ndarray | None
    trailing_bytes: int
    segment_lengths: np.ndarray | None = None


LONGEST_COMPARED = 1_000_000  # characters; of a longer text, as many are compared


class EncodersDiffer(Exception):
    """The fast encoder gives other ids than `tokenizers` for a text."""

    def __init__(self, text: str):
        super().__init__(text)
        self.text = text


class Encoder:
    """Encodes batches of texts. Thread-safe; threads run in parallel, since the Rust libraries release the GIL.

    With a `segmenter`, the segments of a document are tokenized one by one, and the document is the concatenation of
    their ids.

    A library faster than `tokenizers` encodes the texts if it passes the test of `hard_texts`, and if what is asked
    for beside the ids follows from them: the bytes of byte-level tokens, the words of WordPiece and Unigram.

    Attributes:
        fast: the fast encoder; None if `tokenizers` encodes.
        fast_refusal: why there is no fast encoder, for the log; None if there is one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        append_eos: bool,
        add_special_tokens: bool,
        with_token_bytes: bool,
        with_word_starts: bool,
        segmenter: Segmenter | None = None,
        use_fast_encoder: bool = True,
    ):
        assert segmenter is None or not (append_eos or with_token_bytes)  # these two apply to whole documents
        self.segmenter = segmenter
        self.with_word_starts = with_word_starts
        self.eos_token_id = tokenizer.eos_token_id if append_eos else None
        vocab = tokenizer.get_vocab()
        self.dtype = np.dtype("uint16" if max(vocab.values()) < 2**16 else "uint32")
        self.count_bytes: TokenByteCounter | None = None
        self.fast: FastEncoder | None = None
        self.fast_refusal: str | None = "--fast_encoder off"
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
            if use_fast_encoder:
                self._load_fast_encoder(backend, serialized[0], add_special_tokens)
        else:
            self.fast_refusal = "the tokenizer is a slow one, written in Python"
            options = {"add_special_tokens": add_special_tokens, "verbose": False}
            self.encode_batch = lambda batch: tokenizer(batch, **options).input_ids if batch else []
            serialized = [type(tokenizer).__name__, sorted(vocab.items()), repr(tokenizer.init_kwargs)]
        self.fingerprint = fingerprint(tokenizer=serialized, eos_token_id=self.eos_token_id)

    def __call__(self, batch: list[str], checked: Iterable[int] = ()) -> Encoded:
        """Encode a batch of documents.

        Args:
            checked: indices of documents on which the fast encoder is compared with `tokenizers`.

        Raises:
            EncodersDiffer: the fast encoder differs on one of them.
        """
        if self.segmenter is None:
            return self._encode(batch, checked)
        segments = [self.segmenter(text) for text in batch]
        ends = np.cumsum([0, *map(len, segments)])
        segments_checked = [segment for i in checked for segment in range(ends[i], ends[i + 1])]
        encoded = self._encode([segment for document in segments for segment in document], segments_checked)
        token_ends = np.cumsum([0, *encoded.lengths])
        encoded.segment_lengths = encoded.lengths[encoded.lengths > 0]
        encoded.lengths = np.diff(token_ends[ends])
        encoded.document_bytes = _utf8_sizes(batch)
        return encoded

    @property
    def name(self) -> str:
        """The library that encodes, with its version."""
        return f"tokenizers {tokenizers.__version__}" if self.fast is None else self.fast.name

    def use_tokenizers(self, reason: str) -> None:
        """From now on, encode with `tokenizers`."""
        self.fast, self.fast_refusal = None, reason

    def _load_fast_encoder(self, backend: Tokenizer, serialized: str, add_special_tokens: bool) -> None:
        """Load the fast encoder and compare it with `tokenizers` on the hard texts."""
        self._word_pieces = word_pieces(backend) if self.with_word_starts else None
        try:
            if self.count_bytes is not None and not self.count_bytes.is_byte_level:
                raise Unsupported("bytes of tokens that are not byte-level need character offsets")
            if self.with_word_starts and self._word_pieces is None:
                raise Unsupported("the words of this tokenizer do not follow from its pieces")
            self._affixes = ([], [])
            if add_special_tokens:
                content, framed = (backend.encode("A", add_special_tokens=added).ids for added in (False, True))
                self._affixes = tokens_around(content, framed)
            self.fast, self.fast_refusal = load_fast_encoder(backend, serialized), None
        except (Unsupported, ValueError) as reason:
            return self.use_tokenizers(str(reason))
        texts = hard_texts(token.content for token in backend.get_added_tokens_decoder().values())
        try:
            self._encode(texts, checked=range(len(texts)))
        except EncodersDiffer as difference:
            self.use_tokenizers(f"{self.fast.name} gives other ids for {difference.text[:40]!r}")

    def _encode(self, batch: list[str], checked: Iterable[int]) -> Encoded:
        sizes = _utf8_sizes(batch)
        fast = self.fast  # another thread may give it up at any time
        encoded = (
            self._encode_exactly(batch, sizes) if fast is None else self._encode_fast(fast, batch, sizes, checked)
        )
        if self.eos_token_id is not None:
            self._append_eos(encoded, sizes)
        if encoded.token_bytes is not None:
            _pass_on_bytes(encoded, sizes)
        return encoded

    def _encode_exactly(self, batch: list[str], sizes: np.ndarray) -> Encoded:
        """With `tokenizers`."""
        documents = [np.empty(0, self.dtype)]
        token_bytes, starts = [np.empty(0, np.int64)], [np.empty(0, np.uint8)]
        for text, encoding in zip(batch, self.encode_batch(batch), strict=True):
            documents.append(np.array(encoding if isinstance(encoding, list) else encoding.ids, dtype=self.dtype))
            if self.count_bytes is not None and len(documents[-1]):
                token_bytes.append(self.count_bytes(encoding, text))
            if self.with_word_starts:
                starts.append(word_starts(encoding.word_ids, len(documents[-1])))
        return Encoded(
            tokens=np.concatenate(documents),
            lengths=np.array([len(ids) for ids in documents[1:]], dtype=np.int64),
            document_bytes=sizes,
            token_bytes=None if self.count_bytes is None else np.concatenate(token_bytes),
            word_starts=np.concatenate(starts) if self.with_word_starts else None,
            trailing_bytes=0,
        )

    def _encode_fast(self, fast: FastEncoder, batch: list[str], sizes: np.ndarray, checked: Iterable[int]) -> Encoded:
        """With a fast encoder. Raises EncodersDiffer if `tokenizers` differs on a document that is checked."""
        tokens, lengths = fast.encode(batch)
        tokens = tokens.astype(self.dtype)
        token_bytes = None if self.count_bytes is None else self.count_bytes.own_bytes[tokens]
        starts = self._word_pieces(tokens, lengths) if self.with_word_starts else None
        uncertain = np.zeros(len(batch), dtype=bool)  # where bytes or words do not follow from the ids
        if token_bytes is not None:
            ends = np.cumsum(lengths)
            sums = np.concatenate([[0], np.cumsum(token_bytes)])
            uncertain |= sums[ends] - sums[ends - lengths] != sizes
        if starts is not None:
            uncertain |= [not self._word_pieces.is_certain(text) for text in batch]
        prefix, suffix = (np.array(ids, dtype=self.dtype) for ids in self._affixes)
        is_content = _content_mask(lengths, len(prefix), len(suffix))
        lengths = lengths + len(prefix) + len(suffix)
        framed = np.empty(len(is_content), dtype=self.dtype)
        framed[is_content] = tokens
        framed[~is_content] = np.tile(np.concatenate([prefix, suffix]), len(batch))
        encoded = Encoded(
            tokens=framed,
            lengths=lengths,
            document_bytes=sizes,
            token_bytes=None if token_bytes is None else _spread(token_bytes, is_content, 0),
            word_starts=None if starts is None else _spread(starts, is_content, 1),
            trailing_bytes=0,
        )
        self._compare(encoded, batch, sizes, set(checked), uncertain)
        return encoded

    def _compare(
        self, encoded: Encoded, batch: list[str], sizes: np.ndarray, checked: set[int], uncertain: np.ndarray
    ) -> None:
        """Compare documents with the output of `tokenizers`, and take from it what is uncertain."""
        ends = np.cumsum(encoded.lengths)
        for i in sorted(checked | set(np.flatnonzero(uncertain).tolist())):
            if len(batch[i]) > LONGEST_COMPARED and not uncertain[i]:
                self._encode([batch[i][:LONGEST_COMPARED]], checked=[0])
                continue
            exact = self._encode_exactly([batch[i]], sizes[i : i + 1])
            span = slice(ends[i] - encoded.lengths[i], ends[i])
            is_equal = np.array_equal(encoded.tokens[span], exact.tokens)
            for ours, theirs in (
                (encoded.token_bytes, exact.token_bytes),
                (encoded.word_starts, exact.word_starts),
            ):
                if is_equal and ours is not None and uncertain[i]:
                    ours[span] = theirs
                is_equal &= ours is None or np.array_equal(ours[span], theirs)
            if not is_equal:
                raise EncodersDiffer(batch[i])

    def _append_eos(self, encoded: Encoded, sizes: np.ndarray) -> None:
        """End each document with one end-of-text token. An empty one has none, whatever the tokenizer adds."""
        is_kept = np.repeat(sizes > 0, encoded.lengths)
        lengths = np.where(sizes > 0, encoded.lengths, 0)
        tokens = encoded.tokens[is_kept]
        ends = np.cumsum(lengths)
        lacks = lengths > 0
        lacks[lacks] = tokens[ends[lacks] - 1] != self.eos_token_id
        encoded.tokens = np.insert(tokens, ends[lacks], self.eos_token_id)
        encoded.lengths = lengths + lacks
        if encoded.token_bytes is not None:
            encoded.token_bytes = np.insert(encoded.token_bytes[is_kept], ends[lacks], 0)
        if encoded.word_starts is not None:
            encoded.word_starts = np.insert(encoded.word_starts[is_kept], ends[lacks], 1)


def _utf8_sizes(texts: list[str]) -> np.ndarray:
    return np.array([len(text) if text.isascii() else len(text.encode()) for text in texts], dtype=np.int64)


def _pass_on_bytes(encoded: Encoded, sizes: np.ndarray) -> None:
    """Count the bytes of documents without tokens towards the next token; after the last one they are trailing."""
    has_tokens = encoded.lengths > 0
    without_token = np.cumsum(np.where(has_tokens, 0, sizes))
    passed_on = without_token[has_tokens]
    first_tokens = (np.cumsum(encoded.lengths) - encoded.lengths)[has_tokens]
    encoded.token_bytes[first_tokens] += np.diff(passed_on, prepend=0)
    encoded.trailing_bytes = int(without_token[-1] - (passed_on[-1] if len(passed_on) else 0)) if len(sizes) else 0


def _content_mask(lengths: np.ndarray, num_before: int, num_after: int) -> np.ndarray:
    """False at the tokens that a template adds around each text, bool of shape (tokens with them,)."""
    ends = np.cumsum(lengths + num_before + num_after)
    mask = np.ones(ends[-1] if len(ends) else 0, dtype=bool)
    starts = ends - lengths - num_before - num_after
    for place in range(num_before):
        mask[starts + place] = False
    for place in range(num_after):
        mask[ends - 1 - place] = False
    return mask


def _spread(values: np.ndarray, mask: np.ndarray, fill: int) -> np.ndarray:
    """`values` where the mask is true, `fill` elsewhere."""
    spread = np.full(len(mask), fill, dtype=values.dtype)
    spread[mask] = values
    return spread
