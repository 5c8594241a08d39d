"""XLNet's masks: loss and gradients match the plain model's, and no target's logits depend on hidden tokens."""

import copy

import numpy as np
import pytest
import torch
from conftest import make_xlnet
from torch.nn.functional import cross_entropy

from utils.examples.permutation_collator import PermutationLMCollator
from utils.models.factorization_order import use_factorization_order
from utils.models.losses import use_summed_loss


def make_batch(tokenizer, lengths, probability: float = 0.3, **options) -> dict[str, torch.Tensor]:
    """Random tokens between the tokenizer's special tokens."""
    generator = np.random.default_rng(0)
    normal_ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    examples = []
    for index, length in enumerate(lengths):
        ids = [tokenizer.cls_token_id, *generator.choice(normal_ids, length - 2), tokenizer.sep_token_id]
        examples.append({"input_ids": np.array(ids), "index": index, "epoch": 0})
    return PermutationLMCollator(tokenizer, 5, probability, **options)(examples)


def targets_of(batch: dict[str, torch.Tensor], row: int) -> list[int]:
    """The positions of an example's targets."""
    targets = batch["targets"][row]
    assert torch.equal(targets >= 0, batch["labels"][row] != -100)
    return targets[targets >= 0].tolist()


def is_hidden(batch: dict[str, torch.Tensor], row: int) -> torch.Tensor:
    """Whether token j is hidden from token i, bool (length, length): targets from all tokens but later targets."""
    order = batch["order"][row].tolist()
    return torch.tensor([[j >= 0 and (i < 0 or i <= j) for j in order] for i in order])


@pytest.mark.parametrize("pad_to_length", [None, 40])
def test_loss_and_gradients_match_the_identity_mapping(masked_tokenizer, pad_to_length):
    """Plain XLNet with the inputs of transformers' collator, whose target_mapping has a row for each token."""
    model = make_xlnet(300)
    plain = copy.deepcopy(model).train()
    batch = make_batch(masked_tokenizer, [33, 17, 8], pad_to_length=pad_to_length)
    size, length = batch["input_ids"].shape
    labels = torch.full((size, length), -100)
    for row in range(size):
        targets = targets_of(batch, row)
        labels[row, targets] = batch["input_ids"][row, targets]
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "perm_mask": torch.stack([is_hidden(batch, row) for row in range(size)]).float(),
        "target_mapping": torch.eye(length).expand(size, -1, -1),
    }
    expected = cross_entropy(plain(**inputs).logits.flatten(0, 1), labels.flatten())
    expected.backward()

    use_factorization_order(model)
    use_summed_loss(model, shift=False)
    rows = []
    model.lm_loss.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    num_targets = (labels != -100).sum()
    loss = model.train()(**batch)["loss"] / num_targets
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert rows == [num_targets]
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5, msg=name)

    with torch.no_grad():
        scores = model.eval()(**batch)
        predictions = plain.eval()(**inputs).logits.argmax(dim=-1)
    assert scores["loss"].item() == pytest.approx(expected.item() * num_targets.item(), rel=1e-6)
    assert scores["num_correct"] == (predictions == labels).sum()


def test_batch_without_targets(masked_tokenizer):
    """The loss is 0, and every parameter that is in use has a gradient, as DDP expects."""
    batch = make_batch(masked_tokenizer, [2])
    assert batch["targets"].tolist() == [[-1]]
    model = make_xlnet(300)
    use_factorization_order(model)
    use_summed_loss(model, shift=False)
    loss = model.train()(**batch)["loss"]
    loss.backward()
    assert loss.item() == 0
    unused = ("seg_embed", "r_s_bias")  # for token types, which the batch does not have
    assert all(weight.grad is not None for name, weight in model.named_parameters() if not name.endswith(unused))


def test_no_target_depends_on_hidden_tokens(masked_tokenizer):
    """The gradient of a target's logits is 0 at itself, at later targets and at padding, and not 0 at visible tokens.

    With three layers, so that information about a target could pass through a token that sees it.
    """
    model = make_xlnet(300, n_layer=3).eval()
    batch = make_batch(masked_tokenizer, [33, 17, 8])
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


def test_changed_token_changes_only_the_targets_that_see_it(masked_tokenizer):
    """The logits of all other targets stay bit-equal."""
    model = make_xlnet(300).eval()
    batch = make_batch(masked_tokenizer, [21], probability=0.4)
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
