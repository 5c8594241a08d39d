"""The vocabulary head runs at the targets alone, and nothing else changes: loss, gradients, files, generation."""

import copy
import logging

import pytest
import torch
from conftest import make_masked_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM

from utils.models.losses import PREDICTION_HEADS, use_summed_loss


MASKED_HEADS = sorted(
    set(PREDICTION_HEADS) - {"xlnet"}
)  # whose targets are rows of target_mapping: test_permutation.py


def masked_batch(share: float = 0.3) -> dict[str, torch.Tensor]:
    """Three examples of 24, 9 and 3 tokens; pad tokens are 1."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, 200, (3, 24), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[1, 9:] = 0
    mask[2, 3:] = 0
    input_ids[mask == 0] = 1
    is_target = (torch.rand(3, 24, generator=generator) < share) & (mask == 1)
    labels = torch.where(is_target, torch.randint(5, 200, (3, 24), generator=generator), -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def plain_loss(model, batch) -> torch.Tensor:
    """The mean loss of the plain model, whose head runs at all positions."""
    logits = type(model).forward(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape[:2] == batch["labels"].shape
    return cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def rows_seen_by_output_layer(model, seen: list):
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape))


@pytest.mark.parametrize("model_type", MASKED_HEADS)
def test_loss_and_gradients_are_those_of_all_positions(model_type, caplog):
    caplog.set_level(logging.INFO, "utils")
    model = make_masked_model(model_type, 200)
    plain = copy.deepcopy(model)
    batch = masked_batch()
    num_targets = (batch["labels"] != -100).sum()
    use_summed_loss(model, shift=False)
    assert "all positions" not in caplog.text
    seen = []
    rows_seen_by_output_layer(model, seen)
    loss = model.train()(**batch)["loss"] / num_targets
    loss.backward()
    expected = plain_loss(plain.train(), batch)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6, msg=name)
    assert seen in ([(num_targets, 200)], [])  # [] where the layer is used through its weight

    with torch.no_grad():
        scores = model.eval()(**batch, return_predictions=True)
        logits = plain.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    is_target = batch["labels"] != -100
    assert scores["loss"].item() == pytest.approx(expected.item() * num_targets.item(), rel=1e-6)
    assert torch.equal(scores["predictions"], logits.argmax(-1)[is_target])
    assert torch.equal(scores["references"], batch["labels"][is_target])


@pytest.mark.parametrize("model_type", MASKED_HEADS)
def test_a_batch_without_targets(model_type):
    """Loss 0, and a gradient of 0 for all parameters of the head, since DDP waits for each of them."""
    model = make_masked_model(model_type, 200)
    use_summed_loss(model, shift=False)
    batch = masked_batch(share=0.0)
    loss = model.train()(**batch)["loss"]
    loss.backward()
    assert loss.item() == 0
    head = model.get_submodule(PREDICTION_HEADS[model_type])
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())
    with torch.no_grad():
        scores = model.eval()(**batch, return_predictions=True)
    assert (scores["loss"], scores["num_correct"], scores["num_targets"]) == (0, 0, 0)
    assert scores["predictions"].shape == (0,)


def test_other_models_run_their_head_everywhere_and_say_so(caplog):
    caplog.set_level(logging.INFO, "utils")
    model = make_masked_model("xlm", 200)
    plain = copy.deepcopy(model)
    use_summed_loss(model, shift=False)
    batch = masked_batch()
    expected = plain_loss(plain.train(), batch) * (batch["labels"] != -100).sum()
    for _ in range(3):
        assert model.train()(**batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert caplog.text.count("at all positions") == 1
    assert "XLM" in caplog.text


def test_flash_attention_of_modernbert_keeps_its_gradient():
    """Its head sees the tokens without their padding, and it pads the logits again, with a gradient only if asked."""
    model = make_masked_model("modernbert", 200)
    model.config._attn_implementation = "flash_attention_2"
    use_summed_loss(model, shift=False)
    assert model.config.repad_logits_with_grad


def test_without_labels_nothing_changes():
    model = make_masked_model("bert", 200)
    plain = copy.deepcopy(model).eval()
    use_summed_loss(model.eval(), shift=False)
    batch = masked_batch()
    model(**batch)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)


def test_nothing_stays_behind_when_a_forward_fails():
    model = make_masked_model("bert", 200)
    use_summed_loss(model, shift=False)
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 4), 1000), labels=torch.zeros(1, 4, dtype=torch.int64))
    assert not model.cls._forward_pre_hooks


def test_a_copy_selects_in_itself():
    model = make_masked_model("bert", 200)
    use_summed_loss(model, shift=False)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.cls.predictions.decoder.bias.add_(torch.arange(200.0))
    batch = masked_batch()
    plain = copy.deepcopy(twin)
    expected = plain_loss(plain, batch) * (batch["labels"] != -100).sum()
    assert twin.train()(**batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert model.train()(**batch)["loss"].item() != pytest.approx(expected.item(), rel=1e-3)


def test_gradient_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = make_masked_model("roberta", 200)
        use_summed_loss(model, shift=False)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()(**masked_batch())["loss"].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_torch_compile_makes_no_new_graph_for_each_batch():
    model = make_masked_model("bert", 200)
    use_summed_loss(model, shift=False)
    torch._dynamo.reset()
    compiled = torch.compile(model.train(), backend="eager")
    for share in (0.3, 0.5, 0.4):
        compiled(**masked_batch(share))
    num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for share in (0.2, 0.6, 0.7):
        batch = masked_batch(share)
        assert compiled(**batch)["loss"].item() == pytest.approx(model(**batch)["loss"].item(), rel=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_graphs


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_nothing_is_saved_of_it(model_type, tmp_path):
    model = make_masked_model(model_type, 200)
    model.save_pretrained(tmp_path / "plain")
    use_summed_loss(model, shift=False)
    model.train()(**masked_batch())
    model.save_pretrained(tmp_path / "ours")
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes()
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    assert plain_loss(again, masked_batch()).isfinite()
