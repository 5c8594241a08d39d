"""Finds out whether a model's loss can be computed in its output layer, by computing it both ways on a few tokens."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel

from utils.models.linear_cross_entropy import LogitStep
from utils.models.vocabulary_head import LossRequest, answer_requests, logits_of


logger = logging.getLogger(__name__)

BATCH_SIZE, LENGTH = 2, 6
LOGIT_STD = 3.0  # so that what is done to the logits shows in the loss
SMALL, LARGE = 2.0**-10, 2.0**100  # logits at which `cap * tanh(scale * x / cap)` is `scale * x`, and `cap`
# Relative to the largest value. A wrong scale, cap or bias changes losses and gradients far more.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass
class Sample:
    """A few random tokens with labels, int64 (batch, length), and the rows that the output layer gets for them.

    `rows`, (batch, length, width), replaces the layer's input. Its gradient then needs no backward pass of the body.
    """

    input_ids: Tensor
    labels: Tensor
    rows: Tensor


def compute_loss_in_output_layer(
    model: PreTrainedModel, request: LossRequest, shift: bool, no_cache: dict[str, bool]
) -> None:
    """Let the output layer of a model compute the loss, if that gives the model's own loss and gradients.

    Costs two or three forwards with a few tokens. If the loss differs, one log line says so, and the layer returns
    logits as before.

    Args:
        model: with the `forward` of `use_summed_loss`, which makes the request.
        shift: as for `use_summed_loss`.
        no_cache: arguments of the model's own forward.
    """

    def plain_logits(input_ids: Tensor) -> Tensor:
        return logits_of(type(model).forward(model, input_ids=input_ids, **no_cache))[0]

    def loss_in_layer(input_ids: Tensor, labels: Tensor) -> Tensor:
        model.training = True  # not its modules, so dropout stays off
        return model.forward(input_ids=input_ids, labels=labels)["loss"]

    layer = model.get_output_embeddings()
    was_training = model.training
    model.eval()
    try:
        if type(layer).forward is not nn.Linear.forward:
            raise ValueError("its output layer is not an ordinary linear layer")
        with torch.random.fork_rng(devices=[]):
            sample = make_sample(model, layer)
            request.step = measure_logit_step(layer, sample, plain_logits)
            answer_requests(layer, request)
            check_equal_losses(model, layer, sample, plain_logits, loss_in_layer, shift, request.label_smoothing)
    except Exception as error:  # of many types: a model may do anything with the output of its output layer
        request.step = None
        logger.info(
            "model: the loss of %s is computed from all logits at once, which takes more memory: %s",
            type(model).__name__, next(iter(str(error).splitlines()), repr(error)),
        )  # fmt: skip
    model.train(was_training)


def make_sample(model: PreTrainedModel, layer: nn.Linear) -> Sample:
    """The same for each call with a model."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, width = layer.weight.shape
    num_ids = min(vocabulary, model.get_input_embeddings().weight.size(0))
    shape, device = (BATCH_SIZE, LENGTH), layer.weight.device
    labels = torch.randint(vocabulary, shape, generator=generator)
    labels[0, 1] = labels[1, -1] = -100
    rows = torch.randn((*shape, width), generator=generator).to(layer.weight)
    rows *= LOGIT_STD / linear(rows, layer.weight).std()
    input_ids = torch.randint(num_ids, shape, generator=generator)
    return Sample(input_ids.to(device), labels.to(device), rows.detach().requires_grad_())


def measure_logit_step(layer: nn.Linear, sample: Sample, plain_logits: Callable[[Tensor], Tensor]) -> LogitStep:
    """What a model does with the output of its output layer, from its logits for a few outputs.

    Args:
        plain_logits: the model's logits, (batch, length, vocabulary), for tokens (batch, length).

    Raises:
        ValueError: the logits are not one output of the layer, or more was done to them.
    """
    outputs = []
    with layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output)):
        logits = plain_logits(sample.input_ids)
    if len(outputs) != 1 or outputs[0].shape != logits.shape:
        raise ValueError("its logits are not what its output layer returns")
    if torch.equal(outputs[0].float(), logits.float()):
        return LogitStep()
    probe = torch.zeros_like(logits, dtype=torch.float32)
    probe[..., 0], probe[..., 1] = SMALL, LARGE
    with layer.register_forward_hook(lambda layer, inputs, output: probe):
        at_small, at_large = plain_logits(sample.input_ids)[0, 0, :2].tolist()
    scale = at_small / SMALL
    if not (math.isfinite(scale) and math.isfinite(at_large)):
        raise ValueError("it does more to its logits than to scale or cap them")
    is_capped = abs(at_large - scale * LARGE) > 1e-6 * abs(scale * LARGE)
    return LogitStep(scale, at_large if is_capped else 0.0)


def check_equal_losses(
    model: PreTrainedModel,
    layer: nn.Linear,
    sample: Sample,
    plain_logits: Callable[[Tensor], Tensor],
    loss_in_layer: Callable[[Tensor, Tensor], Tensor],
    shift: bool,
    label_smoothing: float,
) -> None:
    """Compare the model's own loss and the one of its output layer, and their gradients.

    Args:
        loss_in_layer: the summed loss that is to be checked, for tokens and labels.

    Raises:
        ValueError: they differ.
    """
    inputs = [sample.rows, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    with _input_replaced(layer, sample):
        logits, labels = plain_logits(sample.input_ids), sample.labels
        if shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        expected = cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="sum", label_smoothing=label_smoothing
        )
        loss = loss_in_layer(sample.input_ids, sample.labels)
    _require_close("loss", loss, expected, layer.weight.dtype)
    gradients = (torch.autograd.grad(each, inputs, allow_unused=True) for each in (loss, expected))
    for ours, theirs in zip(*gradients, strict=True):
        if (ours is None) != (theirs is None):
            raise ValueError("something between its output layer and its loss has parameters")
        if ours is not None:
            _require_close("gradient", ours, theirs, layer.weight.dtype)


def _require_close(what: str, ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    difference, size = (ours.float() - theirs.float()).abs().max(), theirs.float().abs().max()
    are_loaded = size.isfinite()  # a process that gets its weights later may have anything in their place
    if are_loaded and not difference <= TOLERANCES[dtype] * size:
        raise ValueError(f"the {what} computed in its output layer differs")


@contextlib.contextmanager
def _input_replaced(layer: nn.Linear, sample: Sample) -> Iterator[None]:
    """Within the block, the layer's input is `sample.rows`, or those with a label if the head runs at targets only."""

    def replace(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return sample.rows if inputs[0].dim() == 3 else sample.rows[sample.labels != -100]

    with layer.register_forward_pre_hook(replace):
        yield
