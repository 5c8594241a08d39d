"""Models with a head for tokens and one for pairs: both losses, and their gradients, are those of the plain model."""

import copy

import pytest
import torch
from conftest import MASKED_SIZES
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForPreTraining

from run_pretraining import MODEL_TYPES
from utils.models.losses import use_summed_loss


def make_pretraining_model(model_type: str, vocab_size: int, **overrides):
    """A random model of two layers, 16 wide, without dropout."""
    torch.manual_seed(0)
    sizes = {"classifier_dropout_prob": 0.0} | MASKED_SIZES | overrides
    return AutoModelForPreTraining.from_config(AutoConfig.for_model(model_type, **sizes, vocab_size=vocab_size))


def pair_batch(share: float = 0.3) -> dict[str, torch.Tensor]:
    """Three pairs of 24, 9 and 5 tokens; pad tokens are 1."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, 200, (3, 24), generator=generator)
    mask, types = torch.ones_like(input_ids), torch.zeros_like(input_ids)
    for row, (cut, length) in enumerate([(10, 24), (4, 9), (2, 5)]):
        mask[row, length:] = 0
        types[row, cut:length] = 1
    input_ids[mask == 0] = 1
    is_target = (torch.rand(3, 24, generator=generator) < share) & (mask == 1)
    labels = torch.where(is_target, torch.randint(5, 200, (3, 24), generator=generator), -100)
    inputs = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
    return inputs | {"labels": labels, "next_sentence_label": torch.tensor([1, 0, 1])}


def with_its_own_names(model_type: str, batch: dict) -> dict:
    """The batch as the plain model takes it."""
    if model_type != "albert":
        return batch
    return {"sentence_order_label" if name == "next_sentence_label" else name: batch[name] for name in batch}


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES))
def test_losses_and_gradients_are_those_of_the_plain_model(model_type):
    """Whose loss is the sum of two means; the vocabulary head saw the targets alone."""
    model = make_pretraining_model(model_type, 200)
    plain = copy.deepcopy(model).train()
    batch = pair_batch()
    counts = torch.tensor([(batch["labels"] != -100).sum(), 3])
    use_summed_loss(model, shift=False)
    seen = []
    head = model.predictions if model_type == "albert" else model.cls.predictions
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    losses = model.train()(**batch)["loss"] / counts
    losses.sum().backward()
    expected = plain(**with_its_own_names(model_type, batch)).loss
    expected.backward()
    assert seen == [(counts[0], 200)]
    assert losses.sum().item() == pytest.approx(expected.item(), rel=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6, msg=name)

    with torch.no_grad():
        scores = model.eval()(**batch, return_predictions=True)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        token_logits, sentence_logits = plain.eval()(**inputs)[:2]
    is_target = batch["labels"] != -100
    token_loss = cross_entropy(token_logits[is_target].double(), batch["labels"][is_target], reduction="sum")
    sentence_loss = cross_entropy(sentence_logits.double(), batch["next_sentence_label"], reduction="sum")
    assert scores["loss"].tolist() == pytest.approx([token_loss.item(), sentence_loss.item()], rel=1e-5)
    num_correct = (sentence_logits.argmax(-1) == batch["next_sentence_label"]).sum()
    assert scores["num_correct"][1] == num_correct
    assert scores["num_targets"].tolist() == counts.tolist()
    assert torch.equal(scores["predictions"], token_logits.argmax(-1)[is_target])


def test_pairs_without_a_masked_token():
    """Only the sentence loss is left, and every parameter has a gradient, as DDP expects."""
    model = make_pretraining_model("bert", 200)
    use_summed_loss(model, shift=False)
    losses = model.train()(**pair_batch(share=0.0))["loss"]
    losses.sum().backward()
    assert losses[0] == 0 and losses[1] > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_label_smoothing_is_about_tokens():
    model, batch = make_pretraining_model("bert", 200), pair_batch()
    plain = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    use_summed_loss(model, shift=False, label_smoothing=0.2)
    losses = model.train()(**batch)["loss"]
    logits, labels = plain.prediction_logits.flatten(0, 1), batch["labels"].flatten()
    expected = cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2)
    assert losses[0].item() == pytest.approx(expected.item(), rel=1e-5)
    expected = cross_entropy(plain.seq_relationship_logits, batch["next_sentence_label"], reduction="sum")
    assert losses[1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_labels_nothing_changes():
    model = make_pretraining_model("albert", 200).eval()
    plain = copy.deepcopy(model)
    use_summed_loss(model, shift=False)
    inputs = {name: pair_batch()[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    ours, theirs = model(**inputs), plain(**inputs)
    assert torch.equal(ours.prediction_logits, theirs.prediction_logits)
    assert torch.equal(ours.sop_logits, theirs.sop_logits)
