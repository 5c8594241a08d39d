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
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, examples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Collate.

        Args:
            examples: dicts with `input_ids`, integer arrays of shape (length,).

        Returns:
            `input_ids` and `labels`, int64 of shape (batch, longest), shorter examples padded on the right with labels
            of -100; `attention_mask`, likewise, only if something is padded. Padding is known by its place, not by its
            id: a pad token that is also the end-of-text token does not hide the latter.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        pad_token_id = self.tokenizer.pad_token_id
        shape = (len(examples), max(lengths))
        input_ids = np.full(shape, 0 if pad_token_id is None else pad_token_id, dtype=np.int64)
        for row, example, length in zip(input_ids, examples, lengths, strict=True):
            row[:length] = example["input_ids"]
        labels = input_ids.copy()
        labels[:, 0] = -100
        batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
        if min(lengths) < max(lengths):
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
        padded = {"input_ids": (tokens, self._pad_token_id), "labels": (labels, -100)}
        batch = {}
        for name, (values, padding) in padded.items():
            rows = np.full(is_token.shape, padding, dtype=np.int64)
            rows[is_token] = values
            batch[name] = torch.from_numpy(rows)
        if self.pad_to_length or lengths.min() < length:
            batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        return batch

    def _masked(self, examples: list[dict], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples' tokens, one after the other, as the model sees them, and their labels; int64, (tokens,)."""
        tokens = np.concatenate([example["input_ids"] for example in examples]).astype(np.int64)
        # Three numbers in [0, 1) for each token: is it chosen, what becomes of it, which token replaces it.
        draws = np.concatenate([self._draws(example) for example in examples], axis=1)
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

    def _draws(self, example: dict[str, np.ndarray | int]) -> np.ndarray:
        """float64 in [0, 1), of shape (3, length). The counter's last word keeps the examples' streams apart."""
        bits = np.random.Philox(key=[self.seed, example["epoch"]], counter=[0, 0, 0, example["index"]])
        return np.random.Generator(bits).random((3, len(example["input_ids"])))


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
