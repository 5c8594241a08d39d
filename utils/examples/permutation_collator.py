"""Collator for permutation language modeling."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from utils.examples.padding import pad
from utils.rng import collator_draws


@dataclass
class PermutationLMCollator:
    """Examples -> a batch in which some tokens are the targets, to be predicted one after another in a random order.

    The targets (XLNet, Yang et al. 2019, section 3.1): the example is divided into contexts, one after another, and
    each has one span of targets at a random position. A span has 1 to `max_span_length` tokens, all lengths equally
    likely, and its context has length / `plm_probability` tokens. (Where that is not an integer, the sum of all
    contexts so far is rounded down.) The last span is cut off at the end of the example. Special tokens are not
    targets.

    The order (sections 2.2 and 2.3): uniformly random. Every token attends to all tokens that are not targets. A
    target also attends to the targets before it in the order. Nothing is replaced by the mask token. No target is
    visible to itself, to a target before it, or to a token that is not a target, so no visible token can leak it. If
    the first target of an example would have nothing to attend to, it is dropped.

    All random choices are a function of (seed, epoch, number of the example), see `utils/rng.py`.

    Args:
        seed: any integer from 0 to 2**64 - 1.
        pad_to_length: pad every batch to this length, and the targets to the most that an example of this length may
            have, so that all batches have the same shapes; None to pad to the longest example and the most targets.
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
            examples: dicts with `input_ids`, integer arrays of shape (length,); `index`, the number of the example in
                the epoch; and `epoch`.

        Returns:
            input_ids: int64 (batch, longest or `pad_to_length`), padded on the right.
            labels: int64 (batch, most targets of an example), the targets of each example from left to right, padded
                with -100. A batch without targets has one column.
            targets: int64 like `labels`, the position of each target in its example, padded with -1.
            order: int64 like `input_ids`: at each target a nonnegative integer, in increasing order of prediction; -1
                elsewhere. The mask that `use_factorization_order` makes of it is a hundred times as large.
            attention_mask: int64 like `input_ids`, if an example is shorter than the batch or `pad_to_length` is set.
        """
        lengths = np.array([len(example["input_ids"]) for example in examples])
        length = self.pad_to_length or int(lengths.max())
        is_token = np.arange(length) < lengths[:, None]
        input_ids = np.concatenate([example["input_ids"] for example in examples]).astype(np.int64)
        input_ids = pad(input_ids, is_token, self._pad_token_id)

        # For each token one number in [0, 1), its place in the order, and two for each span that may be needed.
        max_spans = np.ceil(lengths * self.plm_probability).astype(np.int64)
        epochs, numbers = ([example[name] for example in examples] for name in ("epoch", "index"))
        draws = collator_draws(self.seed, epochs, numbers, lengths + 2 * max_spans)
        order = np.concatenate([of_example[:num] for of_example, num in zip(draws, lengths, strict=True)])
        order = pad((order * 2**53).astype(np.int64), is_token, 0)
        span_draws = np.concatenate([of_example[num:] for of_example, num in zip(draws, lengths, strict=True)])
        span_draws = pad(span_draws, np.arange(2 * max_spans.max()) < 2 * max_spans[:, None], 0.0)

        is_target = self._covered_by_spans(span_draws, length) & is_token & ~self._is_special[input_ids]
        for row in np.flatnonzero((is_target == is_token).all(axis=1)):
            first_target = np.where(is_target[row], order[row], 2**53).argmin()
            is_target[row, first_target] = False
        order[~is_target] = -1

        num_targets = is_target.sum(axis=1)
        is_label = np.arange(self._target_columns(num_targets)) < num_targets[:, None]
        batch = {
            "input_ids": input_ids,
            "labels": pad(input_ids[is_target], is_label, -100),
            "targets": pad(is_target.nonzero()[1], is_label, -1),
            "order": order,
        }
        if self.pad_to_length or lengths.min() < length:
            batch["attention_mask"] = is_token.astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _covered_by_spans(self, draws: np.ndarray, length: int) -> np.ndarray:
        """Which tokens the spans cover, bool (batch, length).

        Args:
            draws: in [0, 1), shape (batch, 2 * spans): for each span its length, then its position in its context.
        """
        sizes = 1 + (draws[:, ::2] * self.max_span_length).astype(np.int64)
        context_ends = np.floor(sizes.cumsum(axis=1) / self.plm_probability + 1e-9).astype(np.int64)
        contexts = np.diff(context_ends, axis=1, prepend=0)
        starts = context_ends - contexts + (draws[:, 1::2] * (contexts - sizes + 1)).astype(np.int64)
        # +1 where a span starts and -1 where it ends; those beyond the end all meet in an extra column.
        changes = np.zeros((len(draws), length + 1), dtype=np.int8)
        rows = np.arange(len(draws))[:, None]
        changes[rows, np.minimum(starts, length)] += 1
        changes[rows, np.minimum(starts + sizes, length)] -= 1
        return changes[:, :-1].cumsum(axis=1, dtype=np.int8) > 0

    def _target_columns(self, num_targets: np.ndarray) -> int:
        """Columns of `labels`: at least one, and with `pad_to_length` the same number for all batches."""
        if self.pad_to_length is None:
            return max(int(num_targets.max()), 1)
        return min(self.pad_to_length, int(self.pad_to_length * self.plm_probability) + self.max_span_length)
