"""Losses summed over the targets, with the vocabulary head run at the targets only."""

import contextlib
import functools
import inspect
import logging
import types
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


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

ROWS_PER_CHUNK = 64  # x 50,000 logits x 4 bytes = 13 MB, which stays in a CPU's cache between passes


def use_summed_loss(model: PreTrainedModel, shift: bool, label_smoothing: float = 0.0) -> None:
    """Replace the model's `forward` by one that, with labels, returns the negative log-likelihood summed over targets.

    The model's own forward returns the mean over the targets of its batch, so averaging it over batches, accumulation
    steps or processes gives a mean of means. LMTrainer computes the exact mean from sums. The model's own forward also
    returns all logits, which mixed precision then copies to float32. The new forward returns no logits and builds no
    KV cache (XLNet: mems). The loss is computed inside `forward`, where DDP and FSDP require it. Without labels, as in
    generation, the model behaves as before.

    If each position predicts its own label (XLNet: each row of `target_mapping`), the vocabulary head runs at the
    targets only, which are a small share: during one forward, a pre-hook on the head's first module selects their
    rows. The logits then have shape (targets, vocabulary). The loss is the same, since a head treats each position
    separately.

    With `labels`, int64 (batch, length), -100 where there is no target, the output is a plain dict:
        loss: the summed loss in nats. In training a float32 scalar, with `label_smoothing` as in torch's
            cross_entropy. In evaluation a float64 scalar.
        num_correct, num_targets: in evaluation; see `score`.
        predictions, references: in evaluation with `return_predictions=True`; see `score`.
    Evaluation runs without mixed precision unless called with `autocast_dtype`.

    A model with a head for sentence pairs (BertForPreTraining and similar) also takes `next_sentence_label`, int64
    (batch,), 0 or 1. Then the loss, and in evaluation the counts, have shape (2,): first for tokens, then for
    sentences. Each loss must be divided by its own number of targets. Predictions and references are for tokens.

    Args:
        shift: whether position t predicts `labels[:, t + 1]` (causal models) and not `labels[:, t]`.
        label_smoothing: share of a target token's probability that is spread over the vocabulary, in training.
    """
    head = None if shift else _prediction_head(model)
    forward_signature = inspect.signature(type(model).forward)
    no_cache = {name: False for name in ("use_cache", "use_mems") if name in forward_signature.parameters}

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
            if head is not None:
                is_target = labels != -100
                labels = labels[is_target]
                stack.enter_context(_rows_selected(self.get_submodule(head), is_target))
            if self.training:
                token_logits, sentence_logits = _logits_of(plain_forward(**no_cache))
                return _sum_losses(token_logits, labels, sentence_logits, next_sentence_label, label_smoothing)
            with torch.autocast(labels.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                token_logits, sentence_logits = _logits_of(plain_forward(**no_cache))
            return _score_both(token_logits, labels, sentence_logits, next_sentence_label, return_predictions)

    forward.__signature__ = forward_signature  # Trainer and generate() inspect it
    model.forward = types.MethodType(forward, model)


def _logits_of(outputs: ModelOutput) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The logits over the vocabulary, and those for sentence pairs if the model has a head for them."""
    if "prediction_logits" not in outputs:
        return outputs.logits, None
    sentence_logits = "sop_logits" if "sop_logits" in outputs else "seq_relationship_logits"
    return outputs.prediction_logits, outputs[sentence_logits]


def _sum_losses(
    token_logits: torch.Tensor,
    labels: torch.Tensor,
    sentence_logits: torch.Tensor | None,
    next_sentence_label: torch.Tensor | None,
    label_smoothing: float,
) -> dict[str, torch.Tensor]:
    """The output of `forward` in training."""
    token_logits = token_logits.flatten(0, -2).float()
    loss = cross_entropy(token_logits, labels.flatten(), reduction="sum", label_smoothing=label_smoothing)
    if next_sentence_label is not None:
        sentence_loss = cross_entropy(sentence_logits.float(), next_sentence_label, reduction="sum")
        loss = torch.stack([loss, sentence_loss])
    return {"loss": loss}


def _score_both(
    token_logits: torch.Tensor,
    labels: torch.Tensor,
    sentence_logits: torch.Tensor | None,
    next_sentence_label: torch.Tensor | None,
    return_predictions: bool,
) -> dict[str, torch.Tensor]:
    """The output of `forward` in evaluation."""
    scores = score(token_logits, labels, return_predictions)
    if next_sentence_label is not None:
        for name, value in score(sentence_logits, next_sentence_label).items():
            scores[name] = torch.stack([scores[name], value])
    return scores


def _prediction_head(model: PreTrainedModel) -> str | None:
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


@contextlib.contextmanager
def _rows_selected(module: nn.Module, is_selected: torch.Tensor) -> Iterator[None]:
    """Within the block, `module` gets the selected rows (selected, ...) of its first argument (batch, length, ...).

    If that argument is longer, because prompt tuning added positions at the start, the last `length` are used.
    """
    length = is_selected.size(1)
    hook = module.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, -length:][is_selected], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def score(logits: torch.Tensor, labels: torch.Tensor, return_predictions: bool = False) -> dict[str, torch.Tensor]:
    """Sum the negative log-likelihood and count correct predictions, without another tensor of the size of `logits`.

    Args:
        logits: (..., vocabulary), any float type; each row's loss is computed in float32.
        labels: (...) int64, -100 where there is no target.

    Returns:
        loss: float64 scalar in nats (float32 on MPS, which has no float64).
        num_correct: int64 scalar, targets with the highest logit (the first one if several logits are equal).
        num_targets: int64 scalar.
        predictions, references: int64 (targets,), the predicted and the true tokens; with `return_predictions` only.
    """
    rows, targets = logits.reshape(-1, logits.size(-1)), labels.reshape(-1)
    float64 = torch.float32 if logits.device.type == "mps" else torch.float64
    loss = torch.zeros((), dtype=float64, device=logits.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=logits.device)
    # Chunks too small for a GPU leave it idle, and its cache is small: there, chunks only limit the memory.
    chunk_size = ROWS_PER_CHUNK if logits.device.type == "cpu" else 16 * ROWS_PER_CHUNK
    predictions = []
    for chunk, chunk_targets in zip(rows.split(chunk_size), targets.split(chunk_size), strict=True):
        chunk = chunk.float()
        is_target = chunk_targets != -100
        loss += cross_entropy(chunk, chunk_targets, reduction="none").sum(dtype=float64)
        if return_predictions or logits.device.type != "cpu":
            best = chunk.argmax(dim=1)
            is_best = is_target & (best == chunk_targets)
            predictions.append(best)
        else:  # argmax is slow on a CPU: it runs only where the target's logit is the highest, in case others equal it
            at_target = chunk.gather(1, chunk_targets.clamp(min=0).unsqueeze(1)).squeeze(1)
            is_best = is_target & (at_target == chunk.amax(dim=1))
            first_best = torch.from_numpy(chunk[is_best].detach().numpy().argmax(axis=1))  # 4 times as fast as torch's
            is_best[is_best.clone()] = first_best == chunk_targets[is_best]
        num_correct += is_best.sum()
    is_target = targets != -100
    scores = {"loss": loss, "num_correct": num_correct, "num_targets": is_target.sum()}
    if return_predictions:
        scores["predictions"] = torch.cat(predictions)[is_target]
        scores["references"] = targets[is_target]
    return scores
