"""Losses summed over the targets, with the vocabulary head run at the targets only."""

import contextlib
import functools
import inspect
import types

import torch
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from utils.models.head_check import compute_loss_in_output_layer
from utils.models.scores import score
from utils.models.vocabulary_head import LossRequest, first_head_module, logits_of, select_targets


def use_summed_loss(model: PreTrainedModel, shift: bool, label_smoothing: float = 0.0) -> None:
    """Replace the model's `forward` by one that, with labels, returns the negative log-likelihood summed over targets.

    The model's own forward returns the mean over the targets of its batch, so averaging it over batches, accumulation
    steps or processes gives a mean of means. LMTrainer computes the exact mean from sums. The model's own forward also
    returns all logits, which mixed precision then copies to float32. The new forward returns no logits and builds no
    KV cache (XLNet: mems). Without labels, as in generation, the model behaves as before.

    The loss is computed inside the `forward` of the output layer, where DDP, FSDP and others require it, in chunks of
    rows: memory does not grow with batch x length x vocabulary. A model for which that differs from its own loss, in a
    comparison on a few tokens, gets the loss from its logits instead, and a log line says so.

    If each position predicts its own label (XLNet: each row of `target_mapping`), the vocabulary head runs at the
    targets only, which are a small share: during one forward, a pre-hook on the head's first module selects their
    rows. The loss is the same, since a head treats each position separately.

    With `labels`, int64 (batch, length), -100 where there is no target, the output is a plain dict:
        loss: the summed loss in nats. In training a float32 scalar, with `label_smoothing` as in torch's
            cross_entropy. In evaluation a float64 scalar.
        aux_loss: in training of a mixture of experts with `output_router_logits`, the loss that balances its experts
            in this batch, with the weight that the configuration gives it, times the number of targets.
        num_correct, num_targets: in evaluation; see `sum_scores`.
        predictions, references: in evaluation with `return_predictions=True`; see `sum_scores`.
    Evaluation runs without mixed precision unless called with `autocast_dtype`.

    A model with a head for sentence pairs (BertForPreTraining and similar) also takes `next_sentence_label`, int64
    (batch,), 0 or 1. Then the loss, and in evaluation the counts, have shape (2,): first for tokens, then for
    sentences. Each loss must be divided by its own number of targets. Predictions and references are for tokens.

    Args:
        shift: whether position t predicts `labels[:, t + 1]` (causal models) and not `labels[:, t]`.
        label_smoothing: share of a target token's probability that is spread over the vocabulary, in training.
    """
    head = None if shift else first_head_module(model)
    forward_signature = inspect.signature(type(model).forward)
    no_cache = {name: False for name in ("use_cache", "use_mems") if name in forward_signature.parameters}
    request = LossRequest(label_smoothing)
    if head is not None:
        select_targets(model.get_submodule(head), request)

    def forward(
        self,
        *args,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        return_predictions: bool = False,
        autocast_dtype: torch.dtype | None = None,
        **kwargs,
    ):
        plain_forward = functools.partial(type(self).forward, self, *args, **kwargs)
        if labels is None:
            return plain_forward()
        if shift:
            labels = pad(labels[:, 1:], (0, 1), value=-100)
        with contextlib.ExitStack() as stack:
            stack.enter_context(request.made(labels, head is not None, self.training, return_predictions))
            if not self.training:
                stack.enter_context(
                    torch.autocast(labels.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None)
                )
            outputs = plain_forward(**no_cache)
            token_logits, sentence_logits = logits_of(outputs)
            labels, result = request.labels, request.result
        if self.training:
            loss = _summed_loss(token_logits, labels, label_smoothing) if result is None else result
            if next_sentence_label is not None:
                loss = torch.stack([loss, _summed_loss(sentence_logits, next_sentence_label)])
            balance = _balancing_loss(self, outputs)
            return {"loss": loss} if balance is None else {"loss": loss, "aux_loss": balance * (labels != -100).sum()}
        scores = score(token_logits, labels, return_predictions) if result is None else result
        if next_sentence_label is not None:
            for name, value in score(sentence_logits, next_sentence_label).items():
                scores[name] = torch.stack([scores[name], value])
        return scores

    forward.__signature__ = forward_signature  # Trainer and generate() inspect it
    model.forward = types.MethodType(forward, model)
    compute_loss_in_output_layer(model, request, shift, no_cache)


def _summed_loss(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    logits = logits.flatten(0, -2).float()
    return cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=label_smoothing)


def _balancing_loss(model: PreTrainedModel, outputs: ModelOutput) -> torch.Tensor | None:
    """The loss that balances the experts, with its weight as in the model's own loss; None if it was not asked for.

    Source: Switch Transformers (Fedus et al., 2021), equations 4 to 6.
    """
    balance = outputs.get("aux_loss")
    if not torch.is_tensor(balance):
        return None
    names = ("router_aux_loss_coef", "moe_loss_weight", "aux_loss_coef")
    return next(getattr(model, name) for name in names if hasattr(model, name)) * balance.float()
