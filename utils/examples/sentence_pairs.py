"""Pairs of texts, A and B, with a label that says whether B follows A, made from documents."""

import logging

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from utils.errors import UsageError
from utils.tokens.token_store import TokenStore


logger = logging.getLogger(__name__)

LABEL = "next_sentence_label"
PAIR_STREAM = 1  # a word of Philox' counter: the draws for pairs are not those for masks, whose word is 0


class Pairs(Dataset):
    """What all kinds of pairs share: an epoch that decides the random choices, and the way to put a pair together.

    An example is a dict of
        input_ids: integers of shape (length,), [CLS] A [SEP] B [SEP], at most `block_size`.
        token_type_ids: uint8 of the same shape, 0 up to the first [SEP], then 1.
        next_sentence_label: 0 where B follows A, 1 where it does not (nsp) or where the two are swapped (sop), as
            transformers' BertForPreTraining and AlbertForPreTraining have it.
        index, epoch: what, with the seed, decides the random choices about this example.
        word_starts: uint8 of the same shape, 1 where a token begins a word, if the store has them.

    Args:
        block_size: the most tokens in an example.
        num_pairs: how many examples there are.
        seed: any integer from 0 to 2**64 - 1.
    """

    cuts_documents = False  # see PackedBlocks
    min_documents = 16  # out of which a random B comes

    def __init__(self, block_size: int, num_pairs: int, tokenizer: PreTrainedTokenizerBase, seed: int):
        self.block_size = block_size
        self.num_pairs = num_pairs
        self.seed = seed
        self._cls, self._sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        # In shared memory: the workers of a dataloader that outlive an epoch see the next one too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.numbering = (0, 1)  # example i is number `first + i * step` of the epoch, a pair (first, step)

    def set_epoch(self, epoch: int) -> None:
        """Tell the pairs which epoch of the training it is; without this call, as in evaluation, it is 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.num_pairs

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """The examples of a batch, which torch's DataLoader fetches in one call."""
        return [self[index] for index in indices]

    @property
    def content_size(self) -> int:
        """The most tokens that A and B have together."""
        return self.block_size - 3

    def _draws(self, index: int) -> np.random.Generator:
        """The random numbers for example `index` in this epoch, and for no other use."""
        if not 0 <= index < self.num_pairs:
            raise IndexError(index)
        counter = [0, 0, PAIR_STREAM, self._number(index)]
        return np.random.Generator(np.random.Philox(key=[self.seed, int(self._epoch)], counter=counter))

    def _number(self, index: int) -> int:
        return self.numbering[0] + index * self.numbering[1]

    def _example(
        self, index: int, label: int, a: tuple[TokenStore, int, int], b: tuple[TokenStore, int, int], draws
    ) -> dict[str, np.ndarray | int]:
        """Put A and B together, each a store with the place of its first token and of the first one after it."""
        lengths = (a[2] - a[1], b[2] - b[1])
        kept = truncate_pair(*lengths, self.content_size)
        parts = [(self._cls, None)]
        for (store, start, _), length, num_kept in zip((a, b), lengths, kept, strict=True):
            start += int(draws.binomial(length - num_kept, 0.5))
            span = slice(start, start + num_kept)
            parts += [(store.tokens[span], None if store.word_starts is None else store.word_starts[span])]
            parts += [(self._sep, None)]
        input_ids = np.concatenate([np.asarray(ids, dtype=a[0].tokens.dtype) for ids, _ in parts])
        token_type_ids = np.zeros(len(input_ids), dtype=np.uint8)
        token_type_ids[kept[0] + 2 :] = 1
        example = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            LABEL: label,
            "index": self._number(index),
            "epoch": int(self._epoch),
        }
        if a[0].word_starts is not None:
            starts = np.ones(len(input_ids), dtype=np.uint8)  # also for what truncation leaves of a word
            starts[2 : 1 + kept[0]] = parts[1][1][1:]
            starts[3 + kept[0] : 2 + sum(kept)] = parts[3][1][1:]
            example["word_starts"] = starts
        return example


class SentencePairs(Pairs):
    """Pairs of consecutive segments of documents, for next-sentence prediction or sentence order.

    After BERT (Devlin et al. 2019, appendix A.2, and its create_pretraining_data.py): segments of one document are
    gathered until they fill the example (with `short_probability`, until a length drawn from 2 up), and cut between
    two of them, at random, into A and B. With `negative_probability`, B is replaced by as many tokens from a random
    place of another document (nsp), or A and B are swapped (sop, Lan et al. 2020). What is then too long loses tokens
    of its longer side, each from a random one of its ends.

    Where BERT walks through each document and puts back what a negative left unused, so that the number of examples
    is random, here a document of n tokens always has ceil(n / content_size) examples, and all random choices about
    one, its place included, depend on (seed, epoch, index) alone. The places lie at equal distances and shake by half
    of it to either side each epoch; the first and the last one stay within the document, and so are filled. An epoch
    reads about as many tokens as the corpus has. Three more differences make the label a fair coin that the lengths do
    not tell: every example has at least two segments to cut, and a document of one serves as a B alone; where to cut
    is decided by A alone (in BERT, a true B of long segments is likelier than a random one); and a random B begins
    where it has as many tokens as the true one would have had.

    Nothing is stored but where the documents begin; all else is computed from the memory-mapped files.

    Args:
        store: the tokens of the corpus, tokenized with `add_special_tokens=False` and a segmenter.
        block_size: the most tokens in an example, at least 8.
        tokenizer: has a [CLS] and a [SEP] token.
        task: "nsp" or "sop".
        negative_probability: share of the pairs whose label is 1.
        short_probability: share of the pairs that are gathered only up to a random length.
        max_pairs: only the first so many pairs.
        description: what an error calls the corpus.

    Raises:
        UsageError: no document has two segments; or, for nsp, there is one document only.
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
        super().__init__(block_size, 0, tokenizer, seed)
        self.stores = [store]
        self.task = task
        self.negative_probability = negative_probability
        self.short_probability = short_probability
        self._first_segments = np.searchsorted(self._segments, self._offsets)
        num_segments = np.diff(self._first_segments)
        if task == "nsp" and np.count_nonzero(num_segments) < 2:
            raise UsageError(
                f"--sentence_task nsp: the {description} corpus is one document, and a B that does not follow comes "
                "from another one: give more documents (--document_by blank_line or file says what one is in .txt "
                "files), or --sentence_task sop"
            )
        lengths = np.diff(self._offsets)
        counts = np.where(num_segments > 1, -(-lengths // self.content_size), 0)
        self._first_pairs = np.concatenate([[0], np.cumsum(counts)])
        self.num_pairs = int(self._first_pairs[-1])
        if self.num_pairs == 0:
            raise UsageError(
                f"the {description} corpus has no document of two segments, as a pair needs them: give documents of "
                "several lines (--document_by blank_line or file for .txt files), or --segment_by sentence"
            )
        if isinstance(store, TokenStore):
            logger.info(
                "%s: %s pairs from %s segments; %s documents have a single segment, which only serves as a random B",
                description, f"{self.num_pairs:,}", f"{len(self._segments) - 1:,}", f"{np.sum(num_segments == 1):,}",
            )  # fmt: skip
        if max_pairs is not None:
            self.num_pairs = min(self.num_pairs, max_pairs)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """An example; see Pairs."""
        draws = self._draws(index)
        is_negative = draws.random() < self.negative_probability
        is_short = draws.random() < self.short_probability
        size = int(draws.integers(2, self.content_size + 1)) if is_short else self.content_size

        document = int(np.searchsorted(self._first_pairs, index, side="right")) - 1
        first_pair, end_pair = self._first_pairs[document : document + 2].tolist()
        start, end = self._offsets[document : document + 2].tolist()
        size = min(size, end - start)  # of a short document, also where B is not of it
        distance = max(end - start - self.content_size, 0) / max(end_pair - first_pair - 1, 1)
        place = start + round((index - first_pair + draws.random() - 0.5) * distance)
        a, b = self._gather_pair(document, min(max(place, start), end - size), size, draws)
        if is_negative and self.task == "nsp":
            b = self._gather_elsewhere(document, size - (a[1] - a[0]), draws)
        elif is_negative:
            a, b = b, a
        store = self.stores[0]
        return self._example(index, int(is_negative), (store, *a), (store, *b), draws)

    @property
    def _offsets(self) -> np.ndarray:
        """As a plain array, though mapped: a memmap's own indexing takes microseconds."""
        return np.asarray(self.stores[0].offsets)

    @property
    def _segments(self) -> np.ndarray:
        return np.asarray(self.stores[0].segment_offsets)

    def _gather_pair(self, document: int, place: int, size: int, draws) -> tuple[tuple[int, int], tuple[int, int]]:
        """A and B of one document, each as the places of its first token and of the first one after it.

        A begins with the segment at `place` and ends with the one that brings it to a random part of `size`; B goes on
        from there to the whole of it. For sop, where A and B are also read the other way round, this is done backwards
        as often as forwards, so that neither tends to be the longer.
        """
        low, high = self._first_segments[document : document + 2].tolist()
        size_of_first = int(draws.integers(1, size))
        if self.task == "nsp" or draws.random() < 0.5:
            first = min(self._segment_at(place), high - 2)
            cut = min(self._reach(first, size_of_first), high - 1)
            last = min(self._reach(cut, size - int(self._segments[cut] - self._segments[first])), high)
        else:
            last = max(self._segment_at(place + size - 1) + 1, low + 2)
            cut = max(self._reach_back(last, size_of_first), low + 1)
            first = max(self._reach_back(cut, size - int(self._segments[last] - self._segments[cut])), low)
        first, cut, last = self._segments[[first, cut, last]].tolist()
        return (first, cut), (cut, last)

    def _gather_elsewhere(self, document: int, size: int, draws: np.random.Generator) -> tuple[int, int]:
        """What would be B of a random place in another document: `size` tokens or more, in whole segments.

        The place is a token, each as likely as the others, and the segments are those after its own, just as a true B
        follows its A. Where the document ends before, they begin earlier; where it has less, they are all of it.
        """
        start, end = self._offsets[document : document + 2].tolist()
        place = int(draws.integers(len(self.stores[0].tokens) - (end - start)))
        if place >= start:
            place += end - start
        other = int(np.searchsorted(self._offsets, place, side="right")) - 1
        start, end = self._offsets[other : other + 2].tolist()
        first = min(self._segment_at(place) + 1, self._segment_at(max(end - max(size, 1), start)))
        last = min(self._reach(first, size), int(self._first_segments[other + 1]))
        return int(self._segments[first]), int(self._segments[last])

    def _segment_at(self, place: int) -> int:
        """The segment that token `place` is of."""
        return int(np.searchsorted(self._segments, place, side="right")) - 1

    def _reach(self, edge: int, size: int) -> int:
        """The nearest edge of segments that lies `size` tokens or more, and a segment at the least, after `edge`."""
        return int(np.searchsorted(self._segments, self._segments[edge] + max(size, 1)))

    def _reach_back(self, edge: int, size: int) -> int:
        """Likewise, before `edge`."""
        return int(np.searchsorted(self._segments, self._segments[edge] - max(size, 1), side="right")) - 1


def truncate_pair(length_a: int, length_b: int, size: int) -> tuple[int, int]:
    """How many tokens of A and of B are left when the longer one loses tokens, one by one, until both fit in `size`.

    Of equal ones B loses first, as in BERT's truncate_seq_pair.
    """
    excess = max(length_a + length_b - size, 0)
    from_longer = min(excess, abs(length_a - length_b))
    if length_a > length_b:
        length_a -= from_longer
    else:
        length_b -= from_longer
    rest = excess - from_longer
    return length_a - rest // 2, length_b - (rest + 1) // 2
