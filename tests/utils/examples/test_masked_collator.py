"""Masks: how many, which, and that only seed, epoch and example decide."""

import math

import numpy as np
import pytest
import torch
from conftest import make_lines
from example_batches import make_examples

from utils.examples.masked_collator import MaskedLMCollator
from utils.tokens.tokenizer_training import train_tokenizer


def within_four_standard_errors(count: int, total: int, probability: float) -> bool:
    return abs(count - total * probability) <= 4 * math.sqrt(total * probability * (1 - probability))


@pytest.mark.parametrize("shares", [(0.15, 0.8, 0.1), (0.3, 1.0, 0.0), (0.4, 0.5, 0.3)])
@pytest.mark.parametrize("whole_word_mask", [False, True])
def test_rates_over_100_000_tokens(masked_tokenizer, shares, whole_word_mask):
    probability, mask_share, random_share = shares
    tokenizer = masked_tokenizer
    examples = make_examples(tokenizer, [252] * 400, words=True)
    if whole_word_mask:  # words of two tokens, so that the choices are independent by pairs
        for example in examples:
            example["word_starts"] = np.arange(252) % 2
    collator = MaskedLMCollator(tokenizer, 0, probability, mask_share, random_share, whole_word_mask)
    batch = collator(examples)
    before = np.stack([example["input_ids"] for example in examples]).astype(np.int64)
    after, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    is_target = labels != -100
    assert (labels[is_target] == before[is_target]).all()
    assert (after[~is_target] == before[~is_target]).all()
    num_targets, size = is_target.sum(), 2 if whole_word_mask else 1
    assert within_four_standard_errors(num_targets / size, 100_000 / size, probability)
    became_mask = is_target & (after == tokenizer.mask_token_id)
    kept = is_target & (after == before)
    became_random = is_target & ~became_mask & ~kept
    num_normal = len(tokenizer) - len(tokenizer.all_special_ids)
    assert within_four_standard_errors(became_mask.sum(), num_targets, mask_share)
    changed = random_share * (1 - 1 / num_normal)  # one in num_normal is the token that was there
    assert within_four_standard_errors(became_random.sum(), num_targets, changed)
    assert within_four_standard_errors(kept.sum(), num_targets, 1 - mask_share - changed)
    if random_share:
        drawn = after[became_random]
        assert not np.isin(drawn, tokenizer.all_special_ids).any()
        frequencies = np.bincount(drawn, minlength=len(tokenizer))[5:]
        expected = len(drawn) / num_normal
        chi_square = ((frequencies - expected) ** 2 / expected).sum()
        assert abs(chi_square - num_normal) < 4 * math.sqrt(2 * num_normal)
    assert len(set(is_target[:, 1:-1].sum(axis=1).tolist())) > 10  # not a fixed number per example


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
@pytest.mark.parametrize("whole_word_mask", [False, True])
def test_nothing_special_is_masked(kind, whole_word_mask):
    """Neither [CLS], [SEP] and padding nor special tokens within the text, not even inside a word."""
    tokenizer = train_tokenizer(kind, [make_lines(200)], 300, add_special_tokens=True)
    examples = make_examples(tokenizer, [40, 25, 3, 17], words=True)
    for example in examples[:2]:
        example["input_ids"][5:-2:4] = tokenizer.all_special_ids[1]
        example["input_ids"][6] = tokenizer.unk_token_id
        example["input_ids"][7] = tokenizer.mask_token_id
        example["word_starts"][:] = 0
    collator = MaskedLMCollator(tokenizer, 3, 0.95, 0.0, 0.9, whole_word_mask, pad_to_length=50)
    batch = collator(examples)
    labels = batch["labels"]
    assert not torch.isin(labels, torch.tensor(tokenizer.all_special_ids)).any()
    assert (labels[batch["attention_mask"] == 0] == -100).all()
    for row, example in zip(batch["input_ids"].numpy(), examples, strict=True):
        was_special = np.isin(example["input_ids"], tokenizer.all_special_ids)
        ids = row[: len(was_special)]
        assert (ids[was_special] == example["input_ids"][was_special]).all()
        assert not np.isin(ids[~was_special], tokenizer.all_special_ids).any()
    assert (labels != -100).sum() > 40


def test_a_special_token_ends_a_word(masked_tokenizer):
    """The tokens before and after it are chosen separately."""
    ids = np.array([0, 10, 11, 3, 12, 13, 2], dtype=np.uint16)
    starts = np.array([1, 1, 0, 0, 0, 0, 1], dtype=np.uint8)
    examples = [{"input_ids": ids, "index": i, "epoch": 0, "word_starts": starts} for i in range(200)]
    labels = MaskedLMCollator(masked_tokenizer, 0, 0.5, whole_word_mask=True)(examples)["labels"] != -100
    assert torch.equal(labels[:, 1], labels[:, 2])
    assert torch.equal(labels[:, 4], labels[:, 5])
    assert 50 < (labels[:, 1] != labels[:, 4]).sum() < 150


@pytest.mark.parametrize("whole_word_mask", [False, True])
def test_seed_epoch_and_example_decide_alone(masked_tokenizer, whole_word_mask):
    """The same in any batch, in any order; different masks for another seed, epoch or example."""
    lengths = [30, 12, 30, 7, 22]
    examples = make_examples(masked_tokenizer, lengths, words=True)
    collator = MaskedLMCollator(masked_tokenizer, 7, 0.4, whole_word_mask=whole_word_mask)

    def rows(batch) -> list[tuple]:
        shown = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
        return [(ids, labels) for ids, labels in shown]

    together = rows(collator(examples))
    order = [3, 0, 4, 2, 1]
    reordered = rows(collator([examples[i] for i in order]))
    assert [together[i] for i in order] == reordered
    for example, (ids, labels), length in zip(examples, together, lengths, strict=True):
        assert rows(collator([example])) == [(ids[:length], labels[:length])]
    assert rows(collator(examples)) == together

    epoch_1 = rows(collator([example | {"epoch": 1} for example in examples]))
    other_seed = rows(MaskedLMCollator(masked_tokenizer, 8, 0.4, whole_word_mask=whole_word_mask)(examples))
    other_index = rows(collator([example | {"index": example["index"] + 100} for example in examples]))
    for other in (epoch_1, other_seed, other_index):
        assert all(ours != theirs for ours, theirs in zip(together[:3], other[:3], strict=True))
    assert epoch_1 != other_seed


def test_padding(masked_tokenizer):
    """To the longest example, with a mask only if something is padded; or to a fixed length, always with a mask."""
    examples = make_examples(masked_tokenizer, [9, 9])
    batch = MaskedLMCollator(masked_tokenizer, 0)(examples)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    batch = MaskedLMCollator(masked_tokenizer, 0)(make_examples(masked_tokenizer, [9, 4]))
    assert batch["attention_mask"].tolist() == [[1] * 9, [1] * 4 + [0] * 5]
    assert (batch["input_ids"][1, 4:] == masked_tokenizer.pad_token_id).all()
    for lengths in ([9, 4], [12, 12]):
        batch = MaskedLMCollator(masked_tokenizer, 0, pad_to_length=12)(make_examples(masked_tokenizer, lengths))
        assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, 12)
        assert batch["attention_mask"].sum(dim=1).tolist() == lengths
