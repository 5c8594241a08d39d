"""Pairs of texts, A and B, with a label: what all kinds of them have in common."""

import numpy as np
from transformers import PreTrainedTokenizerBase

from utils.examples.base import Examples
from utils.rng import pair_generator
from utils.tokens.token_store import TokenStore


LABEL = "next_sentence_label"


class Pairs(Examples):
    """Pairs of texts between special tokens, with a label that says whether B follows A.

    An example is a dict of
        input_ids: integers of shape (length,), [CLS] A [SEP] B [SEP], at most `block_size`.
        token_type_ids: uint8 of the same shape, 0 up to the first [SEP], then 1.
        next_sentence_label: 0 where B follows A, 1 where it does not (nsp) or where the two are swapped (sop), as in
            transformers' BertForPreTraining and AlbertForPreTraining.
        index, epoch: the number of the example in the epoch, and the epoch. With the seed they decide its random
            choices.
        word_starts: uint8 of the same shape, 1 where a token begins a word, if the store has them.

    Args:
        block_size: the most tokens in an example.
        stores: the token stores that the texts come from.
        num_examples: the number of pairs.
        seed: any integer from 0 to 2**64 - 1.
    """

    min_documents = 16  # a random B then comes from one of 15 others

    def __init__(
        self,
        block_size: int,
        stores: list[TokenStore],
        num_examples: int | None,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
    ):
        super().__init__(block_size, stores, num_examples)
        self.seed = seed
        self._cls, self._sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]

    @property
    def content_size(self) -> int:
        """The most tokens of A and B together."""
        return self.block_size - 3

    def _generator(self, index: int) -> np.random.Generator:
        """The random numbers for an example in this epoch. Raises IndexError if there is no such example."""
        return pair_generator(self.seed, self.epoch, self.number(index))

    def _example(
        self,
        index: int,
        label: int,
        a: tuple[TokenStore, int, int],
        b: tuple[TokenStore, int, int],
        generator: np.random.Generator,
    ) -> dict[str, np.ndarray | int]:
        """Truncate A and B and join them.

        Args:
            a, b: each a store with the start and the end of the text in it.
            generator: draws from which end each truncated token is removed.
        """
        lengths = (a[2] - a[1], b[2] - b[1])
        kept = truncate_pair(*lengths, self.content_size)
        parts = [(self._cls, None)]
        for (store, start, _), length, num_kept in zip((a, b), lengths, kept, strict=True):
            start += int(generator.binomial(length - num_kept, 0.5))
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
            "index": self.number(index),
            "epoch": self.epoch,
        }
        if a[0].word_starts is not None:
            starts = np.ones(len(input_ids), dtype=np.uint8)  # also at a token whose word was cut by truncation
            starts[2 : 1 + kept[0]] = parts[1][1][1:]
            starts[3 + kept[0] : 2 + sum(kept)] = parts[3][1][1:]
            example["word_starts"] = starts
        return example


def truncate_pair(length_a: int, length_b: int, size: int) -> tuple[int, int]:
    """How many tokens of A and of B are left when the longer one loses tokens, one by one, until both fit in `size`.

    If both are equally long, B loses a token first, as in BERT's truncate_seq_pair.
    """
    excess = max(length_a + length_b - size, 0)
    from_longer = min(excess, abs(length_a - length_b))
    if length_a > length_b:
        length_a -= from_longer
    else:
        length_b -= from_longer
    from_both = excess - from_longer
    return length_a - from_both // 2, length_b - (from_both + 1) // 2
