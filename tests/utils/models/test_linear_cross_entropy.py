"""The loss of the vocabulary head in chunks of rows equals cross_entropy of its logits, in value and gradients."""

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from utils.models import linear_cross_entropy as module
from utils.models.linear_cross_entropy import LogitStep, linear_cross_entropy, logit_chunks
from utils.models.scores import score, sum_scores


ROWS, WIDTH, VOCABULARY = 150, 8, 70


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 64 rows in parts of 16, so that the rows make three chunks."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 64 * VOCABULARY * 4)
    monkeypatch.setattr(module, "CACHED_ELEMENTS", 16 * VOCABULARY)


def random_inputs(with_bias: bool = True, with_gaps: bool = True) -> tuple:
    """Float64 rows, weights and bias (or None), and labels, some of them missing."""
    generator = torch.Generator().manual_seed(0)
    hidden = 3 * torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64) if with_bias else None
    labels = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    if with_gaps:
        labels[::3] = -100
        labels[64:128] = -100  # a whole chunk
    return hidden, weight, bias, labels


def loss_and_gradients(compute, tensors, dtype: torch.dtype) -> list[torch.Tensor]:
    """Of 2 x the loss, in float64."""
    leaves = [None if each is None else each.to(dtype, copy=True).requires_grad_() for each in tensors]
    loss = compute(*leaves)
    (2 * loss).backward()
    return [loss.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf is not None)]


def plain_loss(hidden, weight, bias, labels, step: LogitStep, label_smoothing: float) -> torch.Tensor:
    logits = step.scale * linear(hidden, weight, bias)
    if step.cap:
        logits = step.cap * torch.tanh(logits / step.cap)
    return cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_gaps", [False, True])
@pytest.mark.parametrize("step", [LogitStep(), LogitStep(scale=0.25), LogitStep(cap=3.0), LogitStep(0.5, 5.0)])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_in_float64(with_bias, with_gaps, step, label_smoothing):
    *tensors, labels = random_inputs(with_bias, with_gaps)
    expected = loss_and_gradients(
        lambda *leaves: plain_loss(*leaves, labels, step, label_smoothing), tensors, torch.float64
    )
    computed = loss_and_gradients(
        lambda *leaves: linear_cross_entropy(*leaves, labels, step, label_smoothing), tensors, torch.float32
    )
    for ours, theirs in zip(computed, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_bfloat16_is_as_exact_as_its_products():
    """The logits are rounded to bfloat16, as those of autocast are; softmax, loss and sums are not."""
    *tensors, labels = random_inputs()
    plain = loss_and_gradients(
        lambda *leaves: cross_entropy(linear(*leaves).float(), labels, reduction="sum"), tensors, torch.bfloat16
    )
    exact = loss_and_gradients(lambda *leaves: plain_loss(*leaves, labels, LogitStep(), 0), tensors, torch.float64)
    ours = loss_and_gradients(
        lambda *leaves: linear_cross_entropy(*leaves, labels, LogitStep()), tensors, torch.bfloat16
    )
    for ours_each, plain_each, exact_each in zip(ours, plain, exact, strict=True):
        error, plain_error = ((each - exact_each).abs().max() for each in (ours_each, plain_each))
        assert error <= max(1.5 * plain_error, 4e-3 * exact_each.abs().max())


def test_likely_and_unlikely_targets():
    """Losses of 0 and of 1,000 nats."""
    hidden, weight = torch.tensor([[1000.0], [1000.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    labels = torch.tensor([0, 2])
    assert linear_cross_entropy(hidden, weight, None, labels, LogitStep()).item() == 2000


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_tensors_get_no_gradient(frozen):
    *tensors, labels = random_inputs()
    leaves = dict(zip(("hidden", "weight", "bias"), (each.float() for each in tensors), strict=True))
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != frozen)
    linear_cross_entropy(**leaves, labels=labels, step=LogitStep()).backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is None} == {frozen}


def test_without_targets_all_gradients_are_zero():
    *tensors, labels = random_inputs()
    loss, *gradients = loss_and_gradients(
        lambda *leaves: linear_cross_entropy(*leaves, torch.full_like(labels, -100), LogitStep()),
        tensors,
        torch.float32,
    )
    assert loss == 0 and len(gradients) == 3
    assert not any(gradient.any() for gradient in gradients)


def test_a_second_backward_pass_is_refused():
    """It would return gradients that were scaled before."""
    *tensors, labels = random_inputs()
    hidden, weight, bias = (each.float().requires_grad_() for each in tensors)
    loss = linear_cross_entropy(hidden, weight, bias, labels, LogitStep())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


@pytest.mark.parametrize("step", [LogitStep(), LogitStep(0.5, 5.0)])
def test_scores_are_those_of_all_logits(step):
    hidden, weight, bias, labels = random_inputs()
    logits = step.apply_(linear(hidden, weight, bias))
    expected = score(logits.float(), labels, return_predictions=True)
    chunks = logit_chunks(hidden.float(), weight.float(), bias.float(), labels, step)
    scores = sum_scores(chunks, hidden.device, return_predictions=True)
    assert scores["loss"].item() == pytest.approx(cross_entropy(logits, labels, reduction="sum").item(), rel=1e-6)
    for name in ("num_correct", "num_targets", "predictions", "references"):
        assert torch.equal(scores[name], expected[name])
