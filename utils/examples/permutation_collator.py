"""Examples to a batch for permutation language modeling."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from utils.examples.batches import _draws, _padded


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
