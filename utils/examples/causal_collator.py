"""Collator for causal language modeling."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


@dataclass
class CausalLMCollator:
    """Blocks -> a batch in which every token is a target, except the first of each block.

    The labels follow transformers' convention, in which `labels[t]` is the token at t, with one difference: the first
    label is -100. No model predicts the first token. So the number of labels other than -100 is the number of targets,
    also for a Trainer that counts them before the shift.

    Args:
        pad_to_length: pad every batch to this length; None to pad to the longest example.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to_length: int | None = None

    def __call__(self, examples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Collate.

        Args:
            examples: dicts with `input_ids`, integer arrays of shape (length,).

        Returns:
            `input_ids` and `labels`, int64 of shape (batch, longest or `pad_to_length`), padded on the right, with
            labels of -100 there; `attention_mask` of the same dtype and shape, if an example is shorter than the batch
            or `pad_to_length` is set. Padding is told by its position, not by its id: a pad token that is also the
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
