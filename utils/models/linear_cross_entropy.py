"""The vocabulary head and its cross-entropy in chunks of rows: the logits of a whole batch never exist."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


# Bytes of logits that exist at once. Products want many rows: with 50,257 tokens on a CPU, chunks of 256 rows take
# 1.05 (float32) to 1.5 times (bfloat16) as long as chunks of 1,024. A GPU needs larger ones.
CHUNK_BYTES = 2**27
CHUNK_BYTES_GPU = 2**29
# Softmax and loss are computed for a few rows of a chunk at a time, which stay in a CPU's cache: 1.4 times as fast.
CACHED_ELEMENTS = 2**20
MIN_CACHED_ROWS = 16


@dataclass(frozen=True)
class LogitStep:
    """What a model does with the head's output x before the loss: `scale * x`, or `cap * tanh(scale * x / cap)`.

    Attributes:
        scale: 1 for most models; Granite and Cohere scale their logits.
        cap: 0 for most models; Gemma 2 caps its logits softly, at 30.
    """

    scale: float = 1.0
    cap: float = 0.0

    def apply_(self, logits: Tensor) -> Tensor:
        """In place."""
        if self.scale != 1:
            logits.mul_(self.scale)
        if self.cap:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    step: LogitStep,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cross-entropy of `step(linear(hidden, weight, bias))`, summed over the rows that have a label.

    Gradients are computed along with the loss, chunk by chunk, so logits are neither kept nor computed twice. Products
    run in the precision of `hidden`. Softmax, loss and the sums over chunks are float32.

    Args:
        hidden: (rows, width), float32, bfloat16 or float16.
        weight, bias: (vocabulary, width) and (vocabulary,), of any float type.
        labels: (rows,) int64, -100 where there is no target.
        label_smoothing: as in torch's cross_entropy.

    Returns:
        A float32 scalar, in nats.

    Raises:
        RuntimeError: in a second backward pass, since the gradients are not kept.
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, step.scale, step.cap, label_smoothing)


def logit_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, step: LogitStep
) -> Iterator[tuple[Tensor, Tensor]]:
    """`step(linear(hidden, weight, bias))` in chunks of rows, as float32, with their labels.

    The arguments are those of `linear_cross_entropy`. The next chunk overwrites the memory of the last one.
    """
    weight = weight.to(hidden.dtype)
    buffer = _logit_buffer(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk in _chunks(len(hidden), buffer):
            logits = _project(hidden[chunk], weight, bias, buffer)
            for part in cached_rows(logits):
                yield step.apply_(logits[part].float()), labels[chunk][part]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, scale, cap, label_smoothing):
        ctx.needed = ctx.needs_input_grad[:3]
        loss, *ctx.gradients = _loss_and_gradients(
            hidden, weight, bias, labels, scale, cap, label_smoothing, *ctx.needed
        )
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        gradients, ctx.gradients = ctx.gradients, None  # autograd can then take them over without a copy
        if gradients is None:
            raise RuntimeError("linear_cross_entropy: the gradients are not kept for a second backward pass")
        scaled = (
            gradient.mul_(grad_loss) if needed else None
            for gradient, needed in zip(gradients, ctx.needed, strict=True)
        )
        return *scaled, None, None, None, None


@torch.library.custom_op("lm::linear_cross_entropy", mutates_args=())  # a single node in the graph of torch.compile
def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    scale: float,
    cap: float,
    label_smoothing: float,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its gradients for `hidden`, `weight` and `bias`: empty tensors where they are not needed."""
    step = LogitStep(scale, cap)
    loss, hidden_gradient, weight_gradient, bias_gradient = _outputs(hidden, weight, for_hidden, for_weight, for_bias)
    for each in (loss, hidden_gradient, bias_gradient):
        each.zero_()
    rows = None
    if hidden.device.type == "cpu":  # a GPU would have to wait for the number of targets
        rows = (labels != -100).nonzero().squeeze(1)
        hidden, labels = hidden[rows], labels[rows]
    low_weight = weight.to(hidden.dtype)
    buffer = _logit_buffer(hidden, low_weight)
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk in _chunks(len(hidden), buffer):
            logits = _project(hidden[chunk], low_weight, bias, buffer)
            for part in cached_rows(logits):
                loss += _loss_to_gradient_(logits[part], labels[chunk][part], step, label_smoothing)
            if for_hidden and rows is None:
                torch.mm(logits, low_weight, out=hidden_gradient[chunk])
            elif for_hidden:
                hidden_gradient.index_copy_(0, rows[chunk], logits @ low_weight)
            if for_weight:
                is_first = chunk.start == 0  # spares a pass that sets the sum to zero
                if hidden.dtype == torch.float32:
                    torch.addmm(weight_gradient, logits.t(), hidden[chunk], beta=not is_first, out=weight_gradient)
                elif is_first:
                    weight_gradient.copy_(logits.t() @ hidden[chunk])
                else:
                    weight_gradient += logits.t() @ hidden[chunk]
            if for_bias:
                bias_gradient += logits.sum(0, dtype=torch.float32)
    if not len(hidden):  # no target
        weight_gradient.zero_()
    return loss, hidden_gradient, weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype)


@_loss_and_gradients.register_fake
def _(hidden, weight, bias, labels, scale, cap, label_smoothing, for_hidden, for_weight, for_bias):
    loss, *gradients = _outputs(hidden, weight, for_hidden, for_weight, for_bias)
    return loss, gradients[0], gradients[1].to(weight.dtype), gradients[2].to(weight.dtype)


def _outputs(hidden: Tensor, weight: Tensor, for_hidden: bool, for_weight: bool, for_bias: bool) -> tuple[Tensor, ...]:
    """The loss and the three gradients, not yet initialized. Sums over chunks are float32."""
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(hidden.shape if for_hidden else 0),
        weight.new_empty(weight.shape if for_weight else 0, dtype=torch.float32),
        weight.new_empty(weight.size(0) if for_bias else 0, dtype=torch.float32),
    )


def _logit_buffer(hidden: Tensor, weight: Tensor) -> Tensor:
    """Memory for a chunk of logits. Reusing it is faster than asking the system for that much again."""
    chunk_bytes = CHUNK_BYTES if hidden.device.type == "cpu" else CHUNK_BYTES_GPU
    num_rows = max(64, chunk_bytes // (weight.size(0) * hidden.element_size()))
    return hidden.new_empty(min(num_rows, len(hidden)), weight.size(0))


def _chunks(num_rows: int, buffer: Tensor) -> Iterator[slice]:
    for start in range(0, num_rows, max(len(buffer), 1)):
        yield slice(start, min(start + len(buffer), num_rows))


def cached_rows(logits: Tensor) -> Iterator[slice]:
    """Parts of logits (rows, vocabulary): on a CPU, few enough rows for its cache; else as many as in a chunk."""
    num_elements = CACHED_ELEMENTS if logits.device.type == "cpu" else CHUNK_BYTES_GPU // 4
    size = max(MIN_CACHED_ROWS, num_elements // logits.size(1))
    for start in range(0, len(logits), size):
        yield slice(start, start + size)


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """`linear(hidden, weight, bias)`, in the memory of `buffer`."""
    logits = torch.mm(hidden, weight.t(), out=buffer[: len(hidden)])
    return logits if bias is None else logits.add_(bias)


def _loss_to_gradient_(logits: Tensor, labels: Tensor, step: LogitStep, label_smoothing: float) -> Tensor:
    """The summed cross-entropy of `step(logits)`; its gradient replaces `logits`."""
    is_target = labels != -100
    labels = labels.clamp(min=0).unsqueeze(1)
    x = step.apply_(logits.float())
    slope = 1 - (x / step.cap).square_() if step.cap else None
    torch.log_softmax(x, dim=1, out=x)
    loss = -x.gather(1, labels).squeeze(1)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing / x.size(1) * x.sum(1)
    x.exp_()
    x.scatter_add_(1, labels, x.new_full(labels.shape, label_smoothing - 1))
    if label_smoothing:
        x.sub_(label_smoothing / x.size(1))
    if slope is not None:
        x.mul_(slope)
    if step.scale != 1:
        x.mul_(step.scale)
    if logits.device.type != "cpu":  # on a CPU, all rows are targets
        x.masked_fill_(~is_target.unsqueeze(1), 0)
    if x.data_ptr() != logits.data_ptr():
        logits.copy_(x)
    return loss.masked_fill_(~is_target, 0).sum()
