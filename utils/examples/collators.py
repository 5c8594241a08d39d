"""Examples -> a batch with its targets."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


@dataclass
class CausalLMCollator:
    """Blocks -> a batch in which each token but a block's first is a target.

    The labels follow transformers' convention, `labels[t]` being the token at t, with one difference: the first is
    -100. No model predicts it, so that the number of labels that are not -100 is the number of targets, also for a
    Trainer that counts them before the shift.

    Args:
        pad_to_length: pad every batch to this length, not to its longest example.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to_length: int | None = None

    def __call__(self, examples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Collate.

        Args:
            examples: dicts with `input_ids`, integer arrays of shape (length,).

        Returns:
            `input_ids` and `labels`, int64 of shape (batch, longest or `pad_to_length`), shorter examples padded on
            the right with labels of -100; `attention_mask`, likewise, only if something is padded, or might be, as
            with `pad_to_length`. Padding is known by its place, not by its id: a pad token that is also the
            end-of-text token does not hide the latter.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        pad_token_id = self.tokenizer.pad_token_id
        shape = (len(examples), self.pad_to_length or max(lengths))
        input_ids = np.full(shape, 0 if pad_token_id is None else pad_token_id, dtype=np.int64)
        for row, example, length in zip(input_ids, examples, lengths, strict=True):
            row[:length] = example["input_ids"]
        labels = input_ids.copy()
        labels[:, 0] = -100
        batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
        if self.pad_to_length or min(lengths) < shape[1]:
            is_token = np.arange(shape[1]) < np.array(lengths)[:, None]
            labels[~is_token] = -100
            batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        return batch


@dataclass
class MaskedLMCollator:
    """Examples -> a batch in which some tokens are masked, and are the targets.

    Each token that is not special is chosen with `mlm_probability`, independently of the others. Of the chosen ones,
    `mask_replace_prob` become the mask token, `random_replace_prob` a token drawn from those that are not special, and
    the rest stay as they are (Devlin et al. 2019, section 3.1). With `whole_word_mask` one choice is made for each
    word, so that its tokens are chosen all or none; what becomes of each is drawn as before. As in RoBERTa (Liu et al.
    2019), each epoch has new masks.

    All this is a function of (seed, epoch, example index) alone, through a counter-based generator (Philox, Salmon et
    al. 2011) for each example: the masks are the same in any batch, worker, process or resumed run.

    Args:
        tokenizer: with a mask token.
        seed: any integer from 0 to 2**64 - 1.
        pad_to_length: pad every batch to this length, not to its longest example.
    """

    tokenizer: PreTrainedTokenizerBase
    seed: int
    mlm_probability: float = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    whole_word_mask: bool = False
    pad_to_length: int | None = None

    def __post_init__(self):
        ids = np.array(sorted(self.tokenizer.get_vocab().values()))
        self._is_special = np.zeros(ids[-1] + 1, dtype=bool)
        self._is_special[self.tokenizer.all_special_ids] = True
        self._normal_ids = ids[~self._is_special[ids]]
        self._mask_token_id = self.tokenizer.mask_token_id
        pad_token_id = self.tokenizer.pad_token_id
        self._pad_token_id = 0 if pad_token_id is None else pad_token_id

    def __call__(self, examples: list[dict[str, np.ndarray | int]]) -> dict[str, torch.Tensor]:
        """Collate.

        Args:
            examples: dicts with `input_ids`, integer arrays of shape (length,), `index`, `epoch` and, for whole words,
                `word_starts`, of shape (length,), 1 where a token begins a word.

        Returns:
            `input_ids` and `labels`, int64 of shape (batch, longest or `pad_to_length`), padded on the right; labels
            are the tokens that were there at the targets, and -100 elsewhere; `attention_mask`, likewise, if something
            is padded, or might be, as with `pad_to_length`.
        """
        lengths = np.array([len(example["input_ids"]) for example in examples])
        tokens, labels = self._masked(examples, lengths)
        length = self.pad_to_length or int(lengths.max())
        is_token = np.arange(length) < lengths[:, None]
        batch = {
            "input_ids": torch.from_numpy(_padded(tokens, is_token, self._pad_token_id)),
            "labels": torch.from_numpy(_padded(labels, is_token, -100)),
        }
        if self.pad_to_length or lengths.min() < length:
            batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        return batch

    def _masked(self, examples: list[dict], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples' tokens, one after the other, as the model sees them, and their labels; int64, (tokens,)."""
        tokens = np.concatenate([example["input_ids"] for example in examples]).astype(np.int64)
        # Three numbers in [0, 1) for each token: is it chosen, what becomes of it, which token replaces it.
        draws = _draws(self.seed, examples, 3 * lengths)
        draws = np.concatenate([some.reshape(3, -1) for some in draws], axis=1)
        if self.whole_word_mask:
            word_starts = np.concatenate([example["word_starts"] for example in examples])
            begins_word = (word_starts != 0) | self._is_special[tokens]
            begins_word[np.cumsum(lengths) - lengths] = True
            draws[0] = draws[0][np.maximum.accumulate(np.where(begins_word, np.arange(len(tokens)), 0))]
        is_target = (draws[0] < self.mlm_probability) & ~self._is_special[tokens]
        becomes_mask = is_target & (draws[1] < self.mask_replace_prob)
        changes = is_target & (draws[1] < self.mask_replace_prob + self.random_replace_prob)
        becomes_random = changes & ~becomes_mask
        labels = np.where(is_target, tokens, -100)
        tokens[becomes_mask] = self._mask_token_id
        tokens[becomes_random] = self._normal_ids[(draws[2, becomes_random] * len(self._normal_ids)).astype(np.int64)]
        return tokens, labels


@dataclass
class PretrainingCollator(MaskedLMCollator):
    """Pairs -> a batch for two tasks: masked tokens, as MaskedLMCollator makes them, and whether B follows A.

    Examples that have `labels` are masked already and stay as they are.
    """

    def __call__(self, examples: list[dict[str, np.ndarray | int]]) -> dict[str, torch.Tensor]:
        """Collate.

        Args:
            examples: as for MaskedLMCollator, with `token_type_ids`, of shape (length,), `next_sentence_label`, 0 or
                1, and, if they are masked already, `labels`, of shape (length,), -100 where there is no target.

        Returns:
            What MaskedLMCollator returns, and `token_type_ids`, int64 of the shape of `input_ids`, padded with 0;
            `next_sentence_label`, int64 of shape (batch,).
        """
        batch = super().__call__(examples)
        token_type_ids = torch.zeros_like(batch["input_ids"])
        for row, example in zip(token_type_ids.numpy(), examples, strict=True):
            row[: len(example["token_type_ids"])] = example["token_type_ids"]
        batch["token_type_ids"] = token_type_ids
        batch["next_sentence_label"] = torch.tensor([example["next_sentence_label"] for example in examples])
        return batch

    def _masked(self, examples: list[dict], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if "labels" not in examples[0]:
            return super()._masked(examples, lengths)
        columns = ([example[name] for example in examples] for name in ("input_ids", "labels"))
        return tuple(np.concatenate(arrays).astype(np.int64) for arrays in columns)


@dataclass
class PermutationLMCollator:
    """Examples -> a batch in which some tokens are the targets, to be predicted one after the other in a random order.

    Which tokens (XLNet, Yang et al. 2019, section 3.1): from the first token on, spans of 1 to `max_span_length`
    tokens, all lengths equally likely, each at a random place of a context of length / `plm_probability` tokens, the
    contexts one after the other. (Where that is no whole number, the sum of all contexts so far is rounded down.) What
    of the last span lies beyond the end is cut off, and special tokens are left out.

    In which order (sections 2.2 and 2.3): uniformly random. A token sees all that are no targets and, if it is one,
    the targets before it in the order: as they are, for nothing is replaced by the mask token. No target is seen by
    itself, by a target before it, or by what is no target; so nothing that is seen has seen more than it may show. An
    example in which nothing is left to see for its first target does not have that target.

    All this is a function of (seed, epoch, example index) alone, through a counter-based generator (Philox, Salmon et
    al. 2011) for each example.

    Args:
        seed: any integer from 0 to 2**64 - 1.
        pad_to_length: pad every batch to this length, not to its longest example, and the targets to the most that an
            example of this length may have: all batches have the same shapes.
    """

    tokenizer: PreTrainedTokenizerBase
    seed: int
    plm_probability: float = 1 / 6
    max_span_length: int = 5
    pad_to_length: int | None = None

    def __post_init__(self):
        self._is_special = np.zeros(max(self.tokenizer.get_vocab().values()) + 1, dtype=bool)
        self._is_special[self.tokenizer.all_special_ids] = True
        pad_token_id = self.tokenizer.pad_token_id
        self._pad_token_id = 0 if pad_token_id is None else pad_token_id

    def __call__(self, examples: list[dict[str, np.ndarray | int]]) -> dict[str, torch.Tensor]:
        """Collate.

        Args:
            examples: dicts with `input_ids`, integer arrays of shape (length,), `index` and `epoch`.

        Returns:
            input_ids: int64 (batch, longest or `pad_to_length`), padded on the right.
            labels: int64 (batch, most targets of an example), the targets of each example from left to right, then
                -100. An example without targets has one label, -100.
            targets: int64 like `labels`, the place of each in its example, and -1 where there is none.
            order: int64 like `input_ids`, each target's place in the order, any number from 0 on; -1 elsewhere. What
                `use_factorization_order` makes of this and the places would be a hundred times as large.
            attention_mask: int64 like `input_ids`, if something is padded, or might be, as with `pad_to_length`.
        """
        lengths = np.array([len(example["input_ids"]) for example in examples])
        length = self.pad_to_length or int(lengths.max())
        is_token = np.arange(length) < lengths[:, None]
        input_ids = np.concatenate([example["input_ids"] for example in examples]).astype(np.int64)
        input_ids = _padded(input_ids, is_token, self._pad_token_id)

        # For each token a number in [0, 1), its place in the order, and two for each span that there could be.
        most_spans = np.ceil(lengths * self.plm_probability).astype(np.int64)
        draws = _draws(self.seed, examples, lengths + 2 * most_spans)
        order = np.concatenate([some[:num] for some, num in zip(draws, lengths, strict=True)])
        order = _padded((order * 2**53).astype(np.int64), is_token, 0)
        is_span = np.arange(2 * most_spans.max()) < 2 * most_spans[:, None]
        spans = np.concatenate([some[num:] for some, num in zip(draws, lengths, strict=True)])
        is_target = self._covered(_padded(spans, is_span, 0.0), length) & is_token & ~self._is_special[input_ids]
        for row in np.flatnonzero((is_target == is_token).all(axis=1)):
            is_target[row, np.where(is_target[row], order[row], 2**53).argmin()] = False
        order[~is_target] = -1

        num_targets = is_target.sum(axis=1)
        is_label = np.arange(self._most_targets(num_targets)) < num_targets[:, None]
        batch = {
            "input_ids": input_ids,
            "labels": _padded(input_ids[is_target], is_label, -100),
            "targets": _padded(is_target.nonzero()[1], is_label, -1),
            "order": order,
        }
        if self.pad_to_length or lengths.min() < length:
            batch["attention_mask"] = is_token.astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _covered(self, draws: np.ndarray, length: int) -> np.ndarray:
        """Which tokens the spans cover, bool (batch, length). Of two draws, one is a span's length, one its place."""
        sizes = 1 + (draws[:, ::2] * self.max_span_length).astype(np.int64)
        ends_of_contexts = np.floor(sizes.cumsum(axis=1) / self.plm_probability + 1e-9).astype(np.int64)
        contexts = np.diff(ends_of_contexts, axis=1, prepend=0)
        starts = ends_of_contexts - contexts + (draws[:, 1::2] * (contexts - sizes + 1)).astype(np.int64)
        # +1 where a span starts and -1 where it ends; beyond the end all of them meet in the last column.
        changes = np.zeros((len(draws), length + 1), dtype=np.int8)
        rows = np.arange(len(draws))[:, None]
        changes[rows, np.minimum(starts, length)] += 1
        changes[rows, np.minimum(starts + sizes, length)] -= 1
        return changes[:, :-1].cumsum(axis=1, dtype=np.int8) > 0

    def _most_targets(self, num_targets: np.ndarray) -> int:
        if self.pad_to_length is None:
            return max(int(num_targets.max()), 1)
        return min(self.pad_to_length, int(self.pad_to_length * self.plm_probability) + self.max_span_length)


def _draws(seed: int, examples: list[dict[str, np.ndarray | int]], counts: np.ndarray) -> list[np.ndarray]:
    """For each example so many numbers in [0, 1), float64, which depend on the seed, its epoch and its index alone."""
    bits = np.random.Philox(0)
    generator = np.random.Generator(bits)
    state = bits.state  # to set it anew takes a sixth of the time that a new generator takes
    draws = []
    for example, count in zip(examples, counts, strict=True):
        state["state"]["key"][:] = (seed, example["epoch"])
        state["state"]["counter"][:] = (0, 0, 0, example["index"])  # the last word keeps the examples' streams apart
        bits.state = state
        draws.append(generator.random(count))
    return draws


def _padded(values: np.ndarray, is_used: np.ndarray, padding: float) -> np.ndarray:
    """Rows with the values (of all rows, one after the other) where `is_used` says so, and `padding` elsewhere."""
    rows = np.full(is_used.shape, padding, dtype=values.dtype)
    rows[is_used] = values
    return rows
