"""The permutation objective: which tokens are targets, in which order, and which tokens each of them may see."""

import math

import numpy as np
import pytest
import torch
from example_batches import is_hidden, make_examples, targets_of

from utils.examples.permutation_collator import PermutationLMCollator


def spans_by_hand(generator: np.random.Generator, length: int, probability: float, max_span: int) -> list[range]:
    """The definition, span by span, with the draws that the collator takes from the same generator."""
    sizes, places = generator.random((math.ceil(length * probability), 2)).T
    spans, total, start = [], 0, 0
    for size, place in zip(sizes, places, strict=True):
        size = 1 + int(size * max_span)
        total += size
        end = math.floor(total / probability + 1e-9)
        first = start + int(place * (end - start - size + 1))
        spans.append(range(first, first + size))
        start = end
    assert start >= length
    return spans


@pytest.mark.parametrize("probability", [1 / 6, 0.15, 0.4, 1.0])
@pytest.mark.parametrize("max_span", [1, 2, 5])
def test_the_targets_are_those_of_the_definition(masked_tokenizer, probability, max_span):
    lengths = [3, 4, 5, 7, 12, 33, 100, 101]
    examples = make_examples(masked_tokenizer, lengths, epoch=2)
    batch = PermutationLMCollator(masked_tokenizer, 7, probability, max_span)(examples)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        generator = np.random.Generator(np.random.Philox(key=[7, 2], counter=[0, 0, 0, row]))
        generator.random(length)  # the order
        spans = spans_by_hand(generator, length, probability, max_span)
        expected = [place for span in spans for place in span if 0 < place < length - 1]
        assert targets_of(batch, row) == expected
        labels = batch["labels"][row]
        assert labels[labels != -100].tolist() == example["input_ids"][expected].tolist()
        assert batch["input_ids"][row, :length].tolist() == example["input_ids"].tolist()  # nothing is replaced
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (101 - length)


@pytest.mark.parametrize("probability", [1 / 6, 0.15, 1 / 3])
def test_share_of_targets_over_100_000_tokens(masked_tokenizer, probability):
    """Examples of 1,000 tokens, whose ends matter little; the standard error is that of the examples' shares."""
    collator = PermutationLMCollator(masked_tokenizer, 0, probability)
    examples = make_examples(masked_tokenizer, [1000] * 100)
    counts = [(collator([example])["labels"] != -100).sum().item() for example in examples]
    error = np.std(counts) / math.sqrt(len(counts))
    ends = 2  # for the special tokens and the last span, which is cut off
    assert abs(np.mean(counts) - 1000 * probability) < 4 * error + ends


def test_span_lengths_are_uniform(masked_tokenizer):
    """With contexts so long that spans hardly ever touch."""
    collator = PermutationLMCollator(masked_tokenizer, 0, plm_probability=1 / 40, max_span_length=5)
    counts = np.zeros(6, dtype=int)
    for example in make_examples(masked_tokenizer, [1000] * 100):
        places = np.array(targets_of(collator([example]), 0))
        places = places[places < 900]  # none is cut off at the end
        runs = np.diff(np.flatnonzero(np.diff(places, prepend=-2, append=9999) > 1))
        np.add.at(counts, np.minimum(runs, 5), 1)
    expected = counts.sum() / 5
    assert counts.sum() > 500
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 18.5  # chi-square of 4 degrees, 0.1%


def test_who_sees_whom(masked_tokenizer):
    """Against the definition in words, on every pair of tokens of small examples."""
    lengths = [3, 5, 8, 13, 21, 40]
    batch = PermutationLMCollator(masked_tokenizer, 3, 0.5, 4)(make_examples(masked_tokenizer, lengths))
    for row, length in enumerate(lengths):
        hidden = is_hidden(batch, row)
        targets = targets_of(batch, row)
        others = [place for place in range(40) if place not in targets]
        assert not hidden[:, others].any()  # every token sees all others that are not targets
        assert hidden[others][:, targets].all()  # a token that is not a target sees no target
        # In the order, the targets see 0, 1, 2, ... targets, which are exactly those before them.
        order = sorted(targets, key=lambda place: (~hidden[place, targets]).sum().item())
        for position, place in enumerate(order):
            assert [other for other in targets if not hidden[place, other]] == sorted(order[:position])
        assert len(targets) <= length - 2


def test_orders_are_uniform(masked_tokenizer):
    """Neighboring targets come in either order equally often, and so do the first and the last."""
    collator = PermutationLMCollator(masked_tokenizer, 0, 0.5)
    forward = {"neighbors": [0, 0], "ends": [0, 0]}
    for example in make_examples(masked_tokenizer, [40] * 400):
        batch = collator([example])
        hidden, targets = is_hidden(batch, 0), targets_of(batch, 0)
        pairs = list(zip(targets[::2], targets[1::2], strict=False))
        for name, some in (("neighbors", pairs), ("ends", [(targets[0], targets[-1])])):
            for first, last in some:
                forward[name][0] += int(hidden[first, last])  # the first does not see the last: it comes before it
                forward[name][1] += 1
    for count, total in forward.values():
        assert abs(count - total / 2) < 4 * math.sqrt(total / 4)


@pytest.mark.parametrize("length", [2, 3, 9])
def test_one_token_stays_visible_where_all_are_targets(tokenizer, length):
    """Without special tokens and with a share of 1, the first in the order would be predicted from nothing."""
    example = {"input_ids": np.arange(10, 10 + length), "index": 4, "epoch": 0}
    longer = {"input_ids": np.arange(10, 22), "index": 5, "epoch": 0}
    batch = PermutationLMCollator(tokenizer, 0, plm_probability=1.0)([example, longer])
    targets = targets_of(batch, 0)
    assert len(targets) == length - 1
    is_visible = ~is_hidden(batch, 0) & batch["attention_mask"][0].bool()
    assert is_visible[targets].any(dim=1).all()


def test_special_and_padding_tokens_are_not_targets(masked_tokenizer):
    tokenizer = masked_tokenizer
    examples = make_examples(tokenizer, [50, 21, 6] * 10)
    for example in examples:
        example["input_ids"][3] = tokenizer.eos_token_id
        example["input_ids"][4] = tokenizer.mask_token_id
    batch = PermutationLMCollator(tokenizer, 0, plm_probability=1.0)(examples)
    special = {0, 3, 4}
    for row, example in enumerate(examples):
        last = len(example["input_ids"]) - 1
        assert targets_of(batch, row) == [place for place in range(last) if place not in special]


def test_an_example_is_the_same_in_any_batch(masked_tokenizer):
    """Alone or among longer ones, padded or not; another seed, epoch or index draws different targets."""
    collator = PermutationLMCollator(masked_tokenizer, 11)
    examples = make_examples(masked_tokenizer, [20, 31, 31, 64])
    together = collator(examples)
    padded = PermutationLMCollator(masked_tokenizer, 11, pad_to_length=77)(examples)
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        alone = collator([example])
        for batch in (together, padded):
            assert targets_of(batch, row) == targets_of(alone, 0)
            assert torch.equal(batch["order"][row, :length], alone["order"][0])
            assert (batch["order"][row, length:] == -1).all()
    (example,) = make_examples(masked_tokenizer, [64])
    orders = [
        PermutationLMCollator(masked_tokenizer, seed)([{**example, "epoch": epoch, "index": index}])["order"]
        for seed, epoch, index in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    for i in range(4):
        for j in range(i):
            assert not torch.equal(orders[i], orders[j])


@pytest.mark.parametrize("probability", [1 / 6, 0.37, 1.0])
def test_batches_padded_to_the_full_length_have_one_shape(masked_tokenizer, probability):
    """Which has room for all targets, whichever are drawn."""
    collator = PermutationLMCollator(masked_tokenizer, 0, probability, 5, pad_to_length=31)
    shapes = set()
    for example in make_examples(masked_tokenizer, [31] * 300 + [5]):
        batch = collator([example])
        shapes.add(tuple(tuple(batch[name].shape) for name in sorted(batch)))
        assert "attention_mask" in batch
    assert len(shapes) == 1


def test_an_example_without_targets(masked_tokenizer):
    example = {"input_ids": np.array([0, 2], dtype=np.uint16), "index": 0, "epoch": 0}
    batch = PermutationLMCollator(masked_tokenizer, 0)([example])
    assert batch["labels"].tolist() == [[-100]]
    assert batch["targets"].tolist() == [[-1]]
    assert batch["order"].tolist() == [[-1, -1]]
