"""Pairs of texts made from documents, for next-sentence prediction or sentence order."""

import logging

import numpy as np
from transformers import PreTrainedTokenizerBase

from utils.errors import UsageError
from utils.examples.pairs import Pairs
from utils.tokens.token_store import TokenStore


logger = logging.getLogger(__name__)


class SentencePairs(Pairs):
    """Pairs of consecutive segments of documents, for next-sentence prediction or sentence order.

    After BERT (Devlin et al. 2019, appendix A.2, and its create_pretraining_data.py): segments of one document are
    gathered until they fill the example (with `short_probability`, until a random length of at least 2), and split
    between two of them, at random, into A and B. With `negative_probability`, B is replaced by as many tokens from a
    random position in another document (nsp), or A and B are swapped (sop, Lan et al. 2020). A pair that is then too
    long is truncated: the longer side loses tokens, each from a random one of its ends.

    BERT walks through each document and puts back what a negative left unused, so that the number of examples is
    random. Here a document of n tokens always has ceil(n / content_size) examples, and all random choices about an
    example, its position included, depend on (seed, epoch, index) alone. The positions are evenly spaced and, in each
    epoch, shifted at random by up to half the distance to their neighbors. The first and the last one stay within the
    document, so that their examples are filled. An epoch reads about as many tokens as the corpus has.

    Three more differences to BERT make the label a fair coin that the lengths do not give away. Every example has at
    least two segments to split, so a document of one segment serves only as a random B. Where to split depends on A
    alone; in BERT, a true B of long segments is likelier than a random one. And a random B is gathered at a position
    from which it has as many tokens as the true one would have.

    Only the offsets of documents and pairs are kept in memory; all else is computed from the memory-mapped files.

    Args:
        store: the tokens of the corpus, tokenized with `add_special_tokens=False` and a segmenter.
        block_size: the most tokens in an example, at least 8.
        tokenizer: has a [CLS] and a [SEP] token.
        task: "nsp" or "sop".
        negative_probability: share of the pairs whose label is 1.
        short_probability: share of the pairs that are gathered only up to a random length.
        max_pairs: keep only this many pairs, the first ones.
        description: the name of the corpus in errors.

    Raises:
        UsageError: no document has two segments; or, for nsp, there is only one document.
    """

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task: str,
        seed: int,
        negative_probability: float = 0.5,
        short_probability: float = 0.1,
        max_pairs: int | None = None,
        description: str = "train",
    ):
        assert store.segment_offsets is not None
        super().__init__(block_size, [store], None, tokenizer, seed)
        self.store = store
        self.task = task
        self.negative_probability = negative_probability
        self.short_probability = short_probability
        self._first_segments = np.searchsorted(self._segment_offsets, self._offsets)  # of each document
        num_segments = np.diff(self._first_segments)
        num_pairs = np.where(num_segments > 1, -(-np.diff(self._offsets) // self.content_size), 0)
        self._first_pairs = np.concatenate([[0], np.cumsum(num_pairs)])  # of each document
        total_pairs = int(self._first_pairs[-1])
        if task == "nsp" and np.count_nonzero(num_segments) < 2:
            raise UsageError(
                f"--sentence_task nsp: the {description} corpus is one document, and a B that does not follow comes "
                "from another one: give more documents (--document_by blank_line or file says what one is in .txt "
                "files), or --sentence_task sop"
            )
        if total_pairs == 0:
            raise UsageError(
                f"the {description} corpus has no document of two segments, which a pair needs: give documents of "
                "several lines (--document_by blank_line or file for .txt files), or --segment_by sentence"
            )
        self.num_examples = total_pairs if max_pairs is None else min(total_pairs, max_pairs)
        if isinstance(store, TokenStore):  # not for each window of a stream
            num_single = np.count_nonzero(num_segments == 1)
            logger.info(
                "%s: %s pairs from %s segments; %s documents have a single segment, which serves only as a random B",
                description, f"{total_pairs:,}", f"{len(self._segment_offsets) - 1:,}", f"{num_single:,}",
            )  # fmt: skip

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """An example; see Pairs."""
        generator = self._generator(index)
        is_negative = generator.random() < self.negative_probability
        is_short = generator.random() < self.short_probability
        size = int(generator.integers(2, self.content_size + 1)) if is_short else self.content_size

        document = int(np.searchsorted(self._first_pairs, index, side="right")) - 1
        start, end = self._offsets[document : document + 2].tolist()
        size = min(size, end - start)  # also for a negative of nsp, whose B is from another document
        position = self._position(document, index, generator)
        a, b = self._split_segments(document, min(max(position, start), end - size), size, generator)
        if is_negative and self.task == "nsp":
            b = self._random_b(document, size - (a[1] - a[0]), generator)
        elif is_negative:
            a, b = b, a
        return self._example(index, int(is_negative), (self.store, *a), (self.store, *b), generator)

    @property
    def _offsets(self) -> np.ndarray:
        """A plain array on the mapped file: indexing a memmap takes microseconds."""
        return np.asarray(self.store.offsets)

    @property
    def _segment_offsets(self) -> np.ndarray:
        return np.asarray(self.store.segment_offsets)

    def _position(self, document: int, index: int, generator: np.random.Generator) -> int:
        """The token at which a pair is gathered, one of the evenly spaced ones of its document, shifted at random.

        It may lie outside the document, or too near its end.
        """
        first_pair, end_pair = self._first_pairs[document : document + 2].tolist()
        start, end = self._offsets[document : document + 2].tolist()
        distance = max(end - start - self.content_size, 0) / max(end_pair - first_pair - 1, 1)
        return start + round((index - first_pair + generator.random() - 0.5) * distance)

    def _split_segments(
        self, document: int, position: int, size: int, generator: np.random.Generator
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """A and B from one document, each as the start and the end of its tokens.

        A starts with the segment at `position` and ends with the segment that brings it to a random part of `size`. B
        continues from there until both together have `size` tokens. For sop, where A and B are swapped half the time,
        this is done backward as often as forward, so that neither tends to be longer.
        """
        offsets = self._segment_offsets
        low, high = self._first_segments[document : document + 2].tolist()
        size_of_first = int(generator.integers(1, size))
        if self.task == "nsp" or generator.random() < 0.5:
            first = min(self._segment_at(position), high - 2)
            cut = min(self._boundary_after(first, size_of_first), high - 1)
            last = min(self._boundary_after(cut, size - int(offsets[cut] - offsets[first])), high)
        else:
            last = max(self._segment_at(position + size - 1) + 1, low + 2)
            cut = max(self._boundary_before(last, size_of_first), low + 1)
            first = max(self._boundary_before(cut, size - int(offsets[last] - offsets[cut])), low)
        first, cut, last = offsets[[first, cut, last]].tolist()
        return (first, cut), (cut, last)

    def _random_b(self, document: int, size: int, generator: np.random.Generator) -> tuple[int, int]:
        """A B from a random position in another document: whole segments with at least `size` tokens.

        The position is a token, drawn uniformly from all tokens of other documents. B starts with the next segment, as
        a true B starts with the segment after A. If fewer than `size` tokens are left there, B starts earlier; a
        document that has fewer is taken as a whole.
        """
        start, end = self._offsets[document : document + 2].tolist()
        position = int(generator.integers(len(self.store.tokens) - (end - start)))
        if position >= start:
            position += end - start
        other = int(np.searchsorted(self._offsets, position, side="right")) - 1
        start, end = self._offsets[other : other + 2].tolist()
        first = min(self._segment_at(position) + 1, self._segment_at(max(end - max(size, 1), start)))
        last = min(self._boundary_after(first, size), int(self._first_segments[other + 1]))
        return int(self._segment_offsets[first]), int(self._segment_offsets[last])

    def _segment_at(self, position: int) -> int:
        """The segment that the token at `position` belongs to."""
        return int(np.searchsorted(self._segment_offsets, position, side="right")) - 1

    def _boundary_after(self, boundary: int, size: int) -> int:
        """The nearest segment boundary at least `size` tokens, and at least one segment, after `boundary`."""
        return int(np.searchsorted(self._segment_offsets, self._segment_offsets[boundary] + max(size, 1)))

    def _boundary_before(self, boundary: int, size: int) -> int:
        """The nearest segment boundary at least `size` tokens, and at least one segment, before `boundary`."""
        place = np.searchsorted(self._segment_offsets, self._segment_offsets[boundary] - max(size, 1), side="right")
        return int(place) - 1
