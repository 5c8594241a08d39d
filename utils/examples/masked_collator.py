"""Examples to a batch for masked language modeling."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from utils.examples.batches import _draws, _padded


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
