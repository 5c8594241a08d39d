"""XLNet with the permutation objective: what its loss is, and that no target depends on what is hidden from it."""

import copy

import numpy as np
import pytest
import torch
from conftest import make_xlnet
from example_batches import is_hidden, make_examples, targets_of
from torch.nn.functional import cross_entropy

from utils.examples.permutation_collator import PermutationLMCollator
from utils.models.factorization_order import use_factorization_order
from utils.models.losses import use_summed_loss


def ragged_batch(tokenizer, **options) -> dict[str, torch.Tensor]:
    return PermutationLMCollator(tokenizer, 5, 0.3, **options)(make_examples(tokenizer, [33, 17, 8]))


@pytest.mark.parametrize("pad_to_length", [None, 40])
def test_loss_and_gradients_are_those_of_the_identity_mapping(masked_tokenizer, pad_to_length):
    """Plain XLNet, fed as transformers' collator feeds it: one row of target_mapping for each token."""
    model = make_xlnet(300)
    plain = copy.deepcopy(model).train()
    batch = ragged_batch(masked_tokenizer, pad_to_length=pad_to_length)
    size, length = batch["input_ids"].shape
    labels = torch.full((size, length), -100)
    for row in range(size):
        targets = targets_of(batch, row)
        labels[row, targets] = batch["input_ids"][row, targets]
    perm_mask = torch.stack([is_hidden(batch, row) for row in range(size)]).float()
    logits = plain(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        perm_mask=perm_mask,
        target_mapping=torch.eye(length).expand(size, -1, -1),
    ).logits
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten())
    expected.backward()

    use_factorization_order(model)
    use_summed_loss(model, shift=False)
    seen = []
    model.lm_loss.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    num_targets = (labels != -100).sum()
    loss = model.train()(**batch)["loss"] / num_targets
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert seen == [(num_targets, 300)]
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5, msg=name)

    with torch.no_grad():
        scores = model.eval()(**batch)
        best = plain.eval()(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            perm_mask=perm_mask,
            target_mapping=torch.eye(length).expand(size, -1, -1),
        ).logits.argmax(dim=-1)
    assert scores["loss"].item() == pytest.approx(expected.item() * num_targets.item(), rel=1e-6)
    assert scores["num_correct"] == (best == labels).sum()


def test_no_target_depends_on_what_is_hidden_from_it(masked_tokenizer):
    """The gradient of each target's logits: 0 at itself, at later targets and at padding, not 0 at all that is seen.

    Three layers: enough for what has seen a target to be seen by another one.
    """
    model = make_xlnet(300, n_layer=3).eval()
    batch = ragged_batch(masked_tokenizer)
    embeddings = model.transformer.word_embedding(batch["input_ids"]).detach().requires_grad_()
    inputs = {key: value for key, value in batch.items() if key not in ("input_ids", "labels")}
    use_factorization_order(model)
    logits = model(inputs_embeds=embeddings, **inputs).logits
    num_hidden = 0
    for row in range(len(embeddings)):
        for column, target in enumerate(targets_of(batch, row)):
            (gradient,) = torch.autograd.grad(logits[row, column].square().sum(), embeddings, retain_graph=True)
            is_token = batch["attention_mask"][row].bool()
            hidden = is_hidden(batch, row)[target] | ~is_token
            assert not gradient[row, hidden].any()
            assert gradient[row, ~hidden].any(dim=1).all()
            num_hidden += int((hidden & is_token).sum())
    assert num_hidden > 30


def test_changing_a_hidden_token_changes_no_earlier_target(masked_tokenizer):
    """Token by token, through the whole model: bit-equal logits of all targets before it, others of those after it."""
    model = make_xlnet(300).eval()
    collator = PermutationLMCollator(masked_tokenizer, 5, 0.4)
    (example,) = make_examples(masked_tokenizer, [21])
    batch = collator([example])
    targets = targets_of(batch, 0)
    del batch["labels"]
    hidden = is_hidden(batch, 0)
    use_factorization_order(model)
    assert len(targets) >= 5
    with torch.no_grad():
        before = model(**batch).logits[0]
        for changed in targets:
            batch["input_ids"][0, changed] += 1
            after = model(**batch).logits[0]
            batch["input_ids"][0, changed] -= 1
            for column, target in enumerate(targets):
                assert torch.equal(before[column], after[column]) == bool(hidden[target, changed])


def test_an_example_without_targets_adds_nothing_to_the_loss(masked_tokenizer):
    example = {"input_ids": np.array([0, 2], dtype=np.uint16), "index": 0, "epoch": 0}
    batch = PermutationLMCollator(masked_tokenizer, 0)([example])
    assert (batch["labels"] == -100).all()
    model = make_xlnet(300)
    use_factorization_order(model)
    use_summed_loss(model, shift=False)
    loss = model.train()(**batch)["loss"]
    loss.backward()
    assert loss.item() == 0
    unused = ("seg_embed", "r_s_bias")  # of token types, of which there are none
    assert all(weight.grad is not None for name, weight in model.named_parameters() if not name.endswith(unused))
