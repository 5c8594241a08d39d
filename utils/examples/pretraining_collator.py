"""Collator for masked language modeling and a sentence task on pairs of texts."""

from dataclasses import dataclass

import numpy as np
import torch

from utils.examples.masked_collator import MaskedLMCollator


@dataclass
class PretrainingCollator(MaskedLMCollator):
    """Pairs -> a batch for two tasks: predict the masked tokens, as with MaskedLMCollator, and whether B follows A.

    Examples that have `labels` are already masked and stay as they are.
    """

    def __call__(self, examples: list[dict[str, np.ndarray | int]]) -> dict[str, torch.Tensor]:
        """Collate.

        Args:
            examples: as for MaskedLMCollator, with `token_type_ids`, of shape (length,), `next_sentence_label`, 0 or
                1, and, if they are already masked, `labels`, of shape (length,), -100 where there is no target.

        Returns:
            What MaskedLMCollator returns; `token_type_ids`, int64 of the shape of `input_ids`, padded with 0; and
            `next_sentence_label`, int64 of shape (batch,).
        """
        batch = super().__call__(examples)
        token_type_ids = torch.zeros_like(batch["input_ids"])
        for row, example in zip(token_type_ids.numpy(), examples, strict=True):
            row[: len(example["token_type_ids"])] = example["token_type_ids"]
        batch["token_type_ids"] = token_type_ids
        batch["next_sentence_label"] = torch.tensor([example["next_sentence_label"] for example in examples])
        return batch

    def _mask(self, examples: list[dict], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if "labels" not in examples[0]:
            return super()._mask(examples, lengths)
        columns = ([example[name] for example in examples] for name in ("input_ids", "labels"))
        return tuple(np.concatenate(arrays).astype(np.int64) for arrays in columns)
