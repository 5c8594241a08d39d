"""The vocabulary head of a model: the loss is computed inside its last layer, and only at the targets."""

import contextlib
import logging
import types
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from utils.models.linear_cross_entropy import LogitStep, linear_cross_entropy, logit_chunks
from utils.models.scores import sum_scores


logger = logging.getLogger(__name__)


# The first module of the vocabulary head, by model type, for heads that also run on selected rows. Each is tested.
PREDICTION_HEADS = {
    "albert": "predictions", "bert": "cls", "camembert": "lm_head", "convbert": "generator_predictions",
    "data2vec-text": "lm_head", "deberta": "cls", "deberta-v2": "cls", "distilbert": "vocab_transform",
    "electra": "generator_predictions", "ernie": "cls", "esm": "lm_head", "megatron-bert": "cls",
    "mobilebert": "cls", "modernbert": "head", "mpnet": "lm_head", "roberta": "lm_head",
    "roberta-prelayernorm": "lm_head", "roformer": "cls", "xlm-roberta": "lm_head", "xlm-roberta-xl": "lm_head",
    "xlnet": "lm_loss",
}  # fmt: skip


def first_head_module(model: PreTrainedModel) -> str | None:
    """The name of the vocabulary head's first module; None if the head must run at all positions."""
    config = model.config
    head = PREDICTION_HEADS.get(config.model_type)
    if config.model_type == "modernbert":
        config.reference_compile = False  # it would compile its head with the pre-hook; --torch_compile does not
        if config._attn_implementation == "flash_attention_2":  # the head gets unpadded rows, without a batch
            config.repad_logits_with_grad = True
            head = None
    if head is None or not hasattr(model, head):
        logger.info(
            "model: the vocabulary head of %s runs at all positions, not only at the targets", type(model).__name__
        )
        return None
    return head


def logits_of(outputs: ModelOutput) -> tuple[Tensor, Tensor | None]:
    """The logits over the vocabulary, and those for sentence pairs if the model has a head for them."""
    if "prediction_logits" not in outputs:
        return outputs.logits, None
    sentence_logits = "sop_logits" if "sop_logits" in outputs else "seq_relationship_logits"
    return outputs.prediction_logits, outputs[sentence_logits]


@dataclass
class LossRequest:
    """What the vocabulary head computes during a forward of the model.

    Attributes:
        label_smoothing: in training.
        step: what the model does with the logits before the loss; None if the output layer cannot compute the loss.
        labels: int64, one per row of the output layer's input; None to compute logits as usual.
        positions: int64 indices into (batch x length), of the rows that the head runs for; None for all.
        length: of the examples.
        in_training: whether to compute the loss with its gradients, or the scores of an evaluation.
        return_predictions: among the scores.
        result: the loss or the scores; None if the layer did not compute them.
    """

    label_smoothing: float
    step: LogitStep | None = None
    labels: Tensor | None = None
    positions: Tensor | None = None
    length: int = 0
    in_training: bool = True
    return_predictions: bool = False
    result: Tensor | dict[str, Tensor] | None = None

    @contextlib.contextmanager
    def made(self, labels: Tensor, at_targets_only: bool, in_training: bool, return_predictions: bool) -> Iterator:
        """Within the block, the head computes the loss or the scores of `labels`, int64 (batch, length).

        Args:
            at_targets_only: the head runs only for the rows that have a label.
        """
        self.labels, self.length = labels, labels.size(1)
        if at_targets_only:
            self.positions = (labels.flatten() != -100).nonzero().squeeze(1)
            self.labels = labels.flatten()[self.positions]
        self.in_training, self.return_predictions = in_training, return_predictions
        try:
            yield
        finally:
            self.labels = self.positions = self.result = None


def select_targets(head: nn.Module, request: LossRequest) -> None:
    """Give the head's first module only the rows of its first argument, (batch, length, ...), that are requested.

    If the argument is longer, because prompt tuning added positions at the start, the last `length` are used.
    """

    def select(module: nn.Module, inputs: tuple) -> tuple | None:
        if request.positions is None:
            return None
        return inputs[0][:, -request.length :].flatten(0, 1)[request.positions], *inputs[1:]

    head.register_forward_pre_hook(select)


def answer_requests(layer: nn.Linear, request: LossRequest) -> None:
    """Let a model's output layer compute the loss when it is requested. Its output is then a zero per row.

    The layer's `forward` is where FSDP and DeepSpeed have its weights at hand, whole and in the right precision.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if request.labels is None or request.step is None:
            return type(self).forward(self, hidden)
        labels, rows, device = request.labels, hidden, hidden.device
        if hidden.dim() == 3:  # prompt tuning adds positions at the start
            rows = hidden[:, -request.length :].flatten(0, 1)
        if torch.is_autocast_enabled(device.type):
            rows = rows.to(torch.get_autocast_dtype(device.type))
        tensors = (rows, self.weight, self.bias, labels.flatten(), request.step)
        if request.in_training:
            request.result = linear_cross_entropy(*tensors, request.label_smoothing)
        else:
            with torch.no_grad():
                request.result = sum_scores(logit_chunks(*tensors), device, request.return_predictions)
        return hidden.new_zeros((*hidden.shape[:-1], 1))

    layer.forward = types.MethodType(forward, layer)
