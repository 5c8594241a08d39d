"""Batches for causal language modeling, and their targets."""

import numpy as np
import torch

from utils.examples.causal_collator import CausalLMCollator


def blocks(*lengths):
    generator = np.random.default_rng(0)
    return [{"input_ids": generator.integers(0, 300, length).astype(np.uint16)} for length in lengths]


def test_equal_blocks_need_no_mask(tokenizer):
    examples = blocks(5, 5, 5)
    batch = CausalLMCollator(tokenizer)(examples)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    np.testing.assert_array_equal(batch["input_ids"], np.stack([example["input_ids"] for example in examples]))
    assert (batch["labels"][:, 0] == -100).all()
    assert torch.equal(batch["labels"][:, 1:], batch["input_ids"][:, 1:])


def test_targets_are_counted_exactly_with_padding(tokenizer):
    batch = CausalLMCollator(tokenizer)(blocks(7, 3, 1))
    assert (batch["labels"] != -100).sum() == 6 + 2 + 0
    assert batch["attention_mask"].sum(dim=1).tolist() == [7, 3, 1]
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_one_shape_on_request(tokenizer):
    for lengths in ((7, 3), (9, 9)):
        batch = CausalLMCollator(tokenizer, pad_to_length=9)(blocks(*lengths))
        assert {values.shape for values in batch.values()} == {(2, 9)}
        assert set(batch) == {"input_ids", "labels", "attention_mask"}
        assert (batch["labels"] != -100).sum() == sum(lengths) - 2


def test_a_pad_token_equal_to_eos_does_not_hide_eos(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.pad_token = tokenizer.eos_token
    eos = tokenizer.eos_token_id
    batch = CausalLMCollator(tokenizer)([{"input_ids": np.array([5, eos, 6, eos])}, {"input_ids": np.array([7, eos])}])
    assert (batch["labels"] == eos).sum() == 3
