"""Collator for masked language modeling."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from utils.examples.padding import pad
from utils.rng import collator_draws


@dataclass
class MaskedLMCollator:
    """Examples -> a batch in which some tokens are masked, and are the targets.

    Each token that is not special is chosen with `mlm_probability`, independently of the others. Of the chosen ones,
    `mask_replace_prob` become the mask token, `random_replace_prob` a random token that is not special, and the rest
    stay as they are (Devlin et al. 2019, section 3.1). With `whole_word_mask`, whole words are chosen; what replaces
    each of their tokens is still drawn token by token. As in RoBERTa (Liu et al. 2019), each epoch has new masks.

    All random choices are a function of (seed, epoch, number of the example), see `utils/rng.py`: the masks are the
    same in any batch, worker, process or resumed run.

    Args:
        tokenizer: with a mask token.
        seed: any integer from 0 to 2**64 - 1.
        pad_to_length: pad every batch to this length; None to pad to the longest example.
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
            examples: dicts with `input_ids`, integer arrays of shape (length,); `index`, the number of the example in
                the epoch; `epoch`; and for whole words `word_starts`, of shape (length,), 1 where a token begins a
                word.

        Returns:
            `input_ids` and `labels`, int64 of shape (batch, longest or `pad_to_length`), padded on the right; labels
            are the original tokens at the targets, and -100 elsewhere; `attention_mask` of the same dtype and shape,
            if an example is shorter than the batch or `pad_to_length` is set.
        """
        lengths = np.array([len(example["input_ids"]) for example in examples])
        tokens, labels = self._mask(examples, lengths)
        length = self.pad_to_length or int(lengths.max())
        is_token = np.arange(length) < lengths[:, None]
        batch = {
            "input_ids": torch.from_numpy(pad(tokens, is_token, self._pad_token_id)),
            "labels": torch.from_numpy(pad(labels, is_token, -100)),
        }
        if self.pad_to_length or lengths.min() < length:
            batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        return batch

    def _mask(self, examples: list[dict], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all examples, one after the other, as the model sees them; and their labels: int64, (tokens,).

        Three numbers in [0, 1) are drawn for each token: the first decides whether it is a target, the second what
        becomes of a target, the third which token replaces it.
        """
        tokens = np.concatenate([example["input_ids"] for example in examples]).astype(np.int64)
        epochs, numbers = ([example[name] for example in examples] for name in ("epoch", "index"))
        draws = collator_draws(self.seed, epochs, numbers, 3 * lengths)
        draws = np.concatenate([of_example.reshape(3, -1) for of_example in draws], axis=1)
        if self.whole_word_mask:  # all tokens of a word take the first draw of its first token
            word_starts = np.concatenate([example["word_starts"] for example in examples])
            begins_word = (word_starts != 0) | self._is_special[tokens]
            begins_word[np.cumsum(lengths) - lengths] = True
            draws[0] = draws[0][np.maximum.accumulate(np.where(begins_word, np.arange(len(tokens)), 0))]
        is_target = (draws[0] < self.mlm_probability) & ~self._is_special[tokens]
        becomes_mask = is_target & (draws[1] < self.mask_replace_prob)
        is_replaced = is_target & (draws[1] < self.mask_replace_prob + self.random_replace_prob)
        becomes_random = is_replaced & ~becomes_mask
        labels = np.where(is_target, tokens, -100)
        tokens[becomes_mask] = self._mask_token_id
        tokens[becomes_random] = self._normal_ids[(draws[2, becomes_random] * len(self._normal_ids)).astype(np.int64)]
        return tokens, labels
