"""Summed losses: values, gradients and scores match the plain model's, for causal, masked and sentence-pair models."""

import copy
import inspect
import logging

import pytest
import torch
from conftest import MASKED_SIZES, make_masked_model, make_model
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining

from utils.models.losses import use_summed_loss
from utils.models.model_types import PRETRAINING_MODELS
from utils.models.scores import score
from utils.models.vocabulary_head import PREDICTION_HEADS


VOCAB_SIZE = 200
# XLNet's targets are rows of target_mapping; see test_factorization_order.py.
MASKED_MODELS = sorted(set(PREDICTION_HEADS) - {"xlnet"})


def make_pretraining_model(model_type: str, **overrides):
    """A random model with two heads, two layers, 16 wide, without dropout."""
    torch.manual_seed(0)
    sizes = {"classifier_dropout_prob": 0.0} | MASKED_SIZES | overrides
    return AutoModelForPreTraining.from_config(AutoConfig.for_model(model_type, **sizes, vocab_size=VOCAB_SIZE))


def causal_batch() -> dict[str, torch.Tensor]:
    """Examples of 17, 9 and 1 tokens, padded on the right. Every token but the first of each is a target."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, VOCAB_SIZE, (3, 17), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[1, 9:] = 0
    mask[2, 1:] = 0
    labels = input_ids.masked_fill(mask == 0, -100)
    labels[:, 0] = -100
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def masked_batch(target_share: float = 0.3, lengths: tuple[int, ...] = (24, 9, 3)) -> dict[str, torch.Tensor]:
    """Examples padded on the right with token 1; the targets are random positions with random labels."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, VOCAB_SIZE, (3, 24), generator=generator)
    mask = (torch.arange(24) < torch.tensor(lengths)[:, None]).long()
    input_ids[mask == 0] = 1
    is_target = (torch.rand(3, 24, generator=generator) < target_share) & (mask == 1)
    labels = torch.where(is_target, torch.randint(5, VOCAB_SIZE, (3, 24), generator=generator), -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def pair_batch(target_share: float = 0.3) -> dict[str, torch.Tensor]:
    """`masked_batch` with two segments per example and sentence labels."""
    batch = masked_batch(target_share, lengths=(24, 9, 5))
    is_second = torch.arange(24) >= torch.tensor([10, 4, 2])[:, None]
    token_type_ids = is_second.long() * batch["attention_mask"]
    return batch | {"token_type_ids": token_type_ids, "next_sentence_label": torch.tensor([1, 0, 1])}


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch without its labels."""
    return {name: values for name, values in batch.items() if "label" not in name}


def plain_logits(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits at all positions, from the model class's own forward."""
    logits = type(model).forward(model, **inputs_of(batch)).logits
    assert logits.shape[:2] == batch["labels"].shape
    return logits


def plain_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean loss of the model class's own forward, where each position predicts its own label."""
    return cross_entropy(plain_logits(model, batch).flatten(0, 1), batch["labels"].flatten())


def record_rows(module: torch.nn.Module) -> list[int]:
    """The number of rows of each output of the module."""
    rows = []
    module.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    return rows


def assert_same_gradients(model, plain, atol: float = 1e-6, of_largest: float = 0.0) -> None:
    """Within `atol` plus the share `of_largest` of a parameter's largest gradient."""
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            tolerance = atol + of_largest * theirs.grad.abs().max().item()
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=tolerance, msg=name)


# Causal models


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_causal_loss_gradients_and_scores(kind):
    model = make_model(kind, VOCAB_SIZE)
    plain = copy.deepcopy(model)
    batch = causal_batch()
    use_summed_loss(model, shift=True)
    log_probabilities = plain_logits(plain, batch).double().log_softmax(-1)
    expected = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        for position in range(1, length):
            expected = expected - log_probabilities[row, position - 1, batch["input_ids"][row, position]]
    expected.backward()
    outputs = model.train()(**batch)
    assert type(outputs) is dict and outputs.keys() == {"loss"}
    loss = outputs["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, plain, atol=1e-7, of_largest=1e-5)  # a float32 loss and a float64 loss

    with torch.no_grad():
        scores = model.eval()(**batch, return_predictions=True)
    is_target = batch["labels"][:, 1:] != -100
    predictions = plain_logits(plain, batch).argmax(-1)[:, :-1][is_target]
    assert scores["loss"].dtype == torch.float64
    assert scores["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert scores["num_targets"] == is_target.sum() == len(scores["references"])
    assert torch.equal(scores["predictions"], predictions)
    assert torch.equal(scores["references"], batch["labels"][:, 1:][is_target])
    assert scores["num_correct"] == (predictions == scores["references"]).sum()


def test_training_builds_no_cache(monkeypatch):
    model = make_model("gpt2", VOCAB_SIZE)
    seen = []
    monkeypatch.setattr(
        type(model.transformer), "forward", lambda self, *args, **kwargs: seen.append(kwargs["use_cache"]) or 1 / 0
    )
    use_summed_loss(model, shift=True)
    with pytest.raises(ZeroDivisionError):
        model.train()(**causal_batch())
    assert set(seen) == {False}


def test_label_smoothing_matches_cross_entropy():
    model, batch = make_model("gpt2", VOCAB_SIZE), causal_batch()
    logits, labels = plain_logits(model, batch)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    expected = cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    use_summed_loss(model, shift=True, label_smoothing=0.1)
    assert model.train()(**batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


# Masked models: the vocabulary head runs at the targets only


@pytest.mark.parametrize("model_type", MASKED_MODELS)
def test_masked_loss_gradients_and_scores(model_type, caplog):
    caplog.set_level(logging.INFO, "utils")
    model = make_masked_model(model_type, VOCAB_SIZE)
    plain = copy.deepcopy(model)
    batch = masked_batch()
    num_targets = (batch["labels"] != -100).sum()
    use_summed_loss(model, shift=False)
    assert "all positions" not in caplog.text
    rows = record_rows(model.get_output_embeddings())
    loss = model.train()(**batch)["loss"] / num_targets
    loss.backward()
    expected = plain_loss(plain.train(), batch)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, plain)
    assert rows in ([num_targets], [])  # [] if the model uses the layer's weight without calling it

    with torch.no_grad():
        scores = model.eval()(**batch, return_predictions=True)
        logits = plain_logits(plain.eval(), batch)
    is_target = batch["labels"] != -100
    assert scores["loss"].item() == pytest.approx(expected.item() * num_targets.item(), rel=1e-6)
    assert torch.equal(scores["predictions"], logits.argmax(-1)[is_target])
    assert torch.equal(scores["references"], batch["labels"][is_target])


@pytest.mark.parametrize("model_type", MASKED_MODELS)
def test_batch_without_targets(model_type):
    """The loss is 0, and each parameter of the head has a gradient of 0, since DDP waits for all gradients."""
    model = make_masked_model(model_type, VOCAB_SIZE)
    use_summed_loss(model, shift=False)
    batch = masked_batch(target_share=0.0)
    loss = model.train()(**batch)["loss"]
    loss.backward()
    assert loss.item() == 0
    head = model.get_submodule(PREDICTION_HEADS[model_type])
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())
    with torch.no_grad():
        scores = model.eval()(**batch, return_predictions=True)
    assert (scores["loss"], scores["num_correct"], scores["num_targets"]) == (0, 0, 0)
    assert scores["predictions"].shape == (0,)


def test_unlisted_model_runs_its_head_at_all_positions(caplog):
    """And one log line says so."""
    caplog.set_level(logging.INFO, "utils")
    model = make_masked_model("xlm", VOCAB_SIZE)
    plain = copy.deepcopy(model)
    use_summed_loss(model, shift=False)
    batch = masked_batch()
    expected = plain_loss(plain.train(), batch) * (batch["labels"] != -100).sum()
    for _ in range(3):
        assert model.train()(**batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert caplog.text.count("at all positions") == 1
    assert "XLM" in caplog.text


def test_modernbert_with_flash_attention_keeps_its_gradient():
    """Its head gets rows without padding. It pads the logits again, with a gradient only if this is set."""
    model = make_masked_model("modernbert", VOCAB_SIZE)
    model.config._attn_implementation = "flash_attention_2"
    use_summed_loss(model, shift=False)
    assert model.config.repad_logits_with_grad


def test_failed_forward_leaves_no_request():
    model = make_masked_model("bert", VOCAB_SIZE)
    use_summed_loss(model, shift=False)
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 4), 1000), labels=torch.zeros(1, 4, dtype=torch.int64))
    assert model(input_ids=torch.full((1, 4), 7)).logits.shape == (1, 4, VOCAB_SIZE)


def test_gradient_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = make_masked_model("roberta", VOCAB_SIZE)
        use_summed_loss(model, shift=False)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()(**masked_batch())["loss"].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for without, with_checkpointing in zip(*gradients, strict=True):
        assert torch.equal(without, with_checkpointing)


def test_torch_compile_reuses_its_graphs():
    """The number of targets differs between batches."""
    model = make_masked_model("bert", VOCAB_SIZE)
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
def test_saved_files_are_those_of_the_plain_model(model_type, tmp_path):
    model = make_masked_model(model_type, VOCAB_SIZE)
    model.save_pretrained(tmp_path / "plain")
    use_summed_loss(model, shift=False)
    model.train()(**masked_batch())
    model.save_pretrained(tmp_path / "ours")
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes()
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    assert plain_loss(reloaded, masked_batch()).isfinite()


# Models with a second head, for sentence pairs


@pytest.mark.parametrize("model_type", sorted(PRETRAINING_MODELS))
def test_pair_losses_gradients_and_scores(model_type):
    """The plain model's loss is the sum of two means."""
    model = make_pretraining_model(model_type)
    plain = copy.deepcopy(model).train()
    batch = pair_batch()
    counts = torch.tensor([(batch["labels"] != -100).sum(), 3])
    use_summed_loss(model, shift=False)
    rows = record_rows(model.predictions if model_type == "albert" else model.cls.predictions)
    losses = model.train()(**batch)["loss"] / counts
    losses.sum().backward()
    sentence_label = "sentence_order_label" if model_type == "albert" else "next_sentence_label"
    labels = {"labels": batch["labels"], sentence_label: batch["next_sentence_label"]}
    expected = plain(**inputs_of(batch), **labels).loss
    expected.backward()
    assert rows == [counts[0]]
    assert losses.sum().item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, plain)

    with torch.no_grad():
        scores = model.eval()(**batch, return_predictions=True)
        token_logits, sentence_logits = plain.eval()(**inputs_of(batch))[:2]
    is_target = batch["labels"] != -100
    token_loss = cross_entropy(token_logits[is_target].double(), batch["labels"][is_target], reduction="sum")
    sentence_loss = cross_entropy(sentence_logits.double(), batch["next_sentence_label"], reduction="sum")
    assert scores["loss"].tolist() == pytest.approx([token_loss.item(), sentence_loss.item()], rel=1e-5)
    num_correct = (sentence_logits.argmax(-1) == batch["next_sentence_label"]).sum()
    assert scores["num_correct"][1] == num_correct
    assert scores["num_targets"].tolist() == counts.tolist()
    assert torch.equal(scores["predictions"], token_logits.argmax(-1)[is_target])


def test_pairs_without_a_masked_token():
    """The sentence loss remains, and every parameter has a gradient, as DDP expects."""
    model = make_pretraining_model("bert")
    use_summed_loss(model, shift=False)
    losses = model.train()(**pair_batch(target_share=0.0))["loss"]
    losses.sum().backward()
    assert losses[0] == 0 and losses[1] > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_label_smoothing_applies_to_tokens_only():
    model, batch = make_pretraining_model("bert"), pair_batch()
    plain = model(**inputs_of(batch))
    use_summed_loss(model, shift=False, label_smoothing=0.2)
    losses = model.train()(**batch)["loss"]
    logits, labels = plain.prediction_logits.flatten(0, 1), batch["labels"].flatten()
    expected = cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2)
    assert losses[0].item() == pytest.approx(expected.item(), rel=1e-5)
    expected = cross_entropy(plain.seq_relationship_logits, batch["next_sentence_label"], reduction="sum")
    assert losses[1].item() == pytest.approx(expected.item(), rel=1e-5)


# All models


def test_generation_is_unchanged():
    model = make_model("llama", VOCAB_SIZE)
    plain = copy.deepcopy(model)
    use_summed_loss(model, shift=True)
    inputs = {"input_ids": torch.arange(10)[None]}
    ours, theirs = model(**inputs), plain(**inputs)
    assert torch.equal(ours.logits, theirs.logits)
    assert ours.past_key_values is not None
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)


@pytest.mark.parametrize("model_type", ["bert", "albert"])
def test_forward_without_labels_is_unchanged(model_type):
    """Also after one with labels."""
    is_masked = model_type == "bert"
    model = make_masked_model(model_type, VOCAB_SIZE) if is_masked else make_pretraining_model(model_type)
    plain = copy.deepcopy(model).eval()
    use_summed_loss(model.eval(), shift=False)
    batch = masked_batch() if is_masked else pair_batch()
    model(**batch)
    ours, theirs = model(**inputs_of(batch)), plain(**inputs_of(batch))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_copied_model_uses_its_own_weights():
    model, batch = make_model("gpt2", VOCAB_SIZE), causal_batch()
    use_summed_loss(model, shift=True)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.transformer.wte.weight.zero_()
    assert model.train()(**batch)["loss"] != twin.train()(**batch)["loss"]


def test_copied_model_uses_its_own_head():
    model, batch = make_masked_model("bert", VOCAB_SIZE), masked_batch()
    use_summed_loss(model, shift=False)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.cls.predictions.decoder.bias.add_(torch.arange(float(VOCAB_SIZE)))
    expected = plain_loss(copy.deepcopy(twin), batch) * (batch["labels"] != -100).sum()
    assert twin.train()(**batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert model.train()(**batch)["loss"].item() != pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("return_predictions", [True, False])
def test_score_predicts_the_first_of_equal_logits(dtype, return_predictions):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 3, (5, 40, 30), generator=generator).to(dtype)  # many ties
    labels = torch.randint(-1, 30, (5, 40), generator=generator)
    labels[labels == -1] = -100
    scores = score(logits, labels, return_predictions)
    is_target = labels != -100
    nll = -logits.double().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    assert scores["loss"].item() == pytest.approx(nll[is_target].sum().item(), rel=1e-6)
    first_highest = torch.tensor([[row.tolist().index(row.max().item()) for row in rows] for rows in logits])
    assert scores["num_correct"] == (first_highest == labels)[is_target].sum()
    assert scores["num_targets"] == is_target.sum()
