"""Losses that are summed over their targets, with the vocabulary head at the targets only."""

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


# The first module of the head that predicts tokens, of models whose heads take rows as well as a batch: each tested.
PREDICTION_HEADS = {
    "albert": "predictions", "bert": "cls", "camembert": "lm_head", "convbert": "generator_predictions",
    "data2vec-text": "lm_head", "deberta": "cls", "deberta-v2": "cls", "distilbert": "vocab_transform",
    "electra": "generator_predictions", "ernie": "cls", "esm": "lm_head", "megatron-bert": "cls",
    "mobilebert": "cls", "modernbert": "head", "mpnet": "lm_head", "roberta": "lm_head",
    "roberta-prelayernorm": "lm_head", "roformer": "cls", "xlm-roberta": "lm_head", "xlm-roberta-xl": "lm_head",
    "xlnet": "lm_loss",
}  # fmt: skip


ROWS_SCORED_AT_ONCE = 64  # x 50,000 pieces x 4 bytes = 13 MB: stays in a CPU's cache between the passes over it


def use_summed_loss(model: PreTrainedModel, shift: bool, label_smoothing: float = 0.0) -> None:
    """Give the model a `forward` that, with labels, returns the sum of the negative log-likelihoods of its targets.

    The plain forward divides by a count of its own, so that a mean over several batches, accumulation steps or
    processes is a mean of means; of sums, LMTrainer makes the exact one. It also returns all logits, which mixed
    precision then copies to float32. This one returns no logits, builds no KV cache (in XLNet: mems), and all of it
    happens inside `forward`, where DDP and FSDP expect it. Without labels, as in generation, nothing is changed.

    Where each position predicts its own label (in XLNet: each row of `target_mapping`), the vocabulary head runs at
    the targets only, which are few: a pre-hook on its first module, there for the time of one forward, selects their
    rows. The logits then have the shape (targets, vocabulary). The loss is the same, since a head looks at each
    position alone.

    With `labels` (batch, length) int64, -100 where there is no target, the output is a dict of:
        loss: the summed loss in nats; in training a float32 scalar, with `label_smoothing` as torch's cross_entropy
            defines it; in evaluation a float64 scalar.
    And in evaluation, which runs without mixed precision unless called with `autocast_dtype`, what `score` returns.

    A model of two heads (BertForPreTraining and its like) is given `next_sentence_label` (batch,) int64 too, 0 or 1.
    Then the loss, and the counts in evaluation, have the shape (2,), of the tokens and of the sentences, each to be
    divided by its own number of targets. Predictions and references are those of the tokens.

    Args:
        shift: position t predicts `labels[:, t + 1]` (causal models) and not `labels[:, t]`.
        label_smoothing: share of a target token's probability that is spread over the vocabulary, in training.
    """
    head = None if shift else _prediction_head(model)
    forward_signature = inspect.signature(type(model).forward)
    loss_options = {name: False for name in ("use_cache", "use_mems") if name in forward_signature.parameters}

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
                logits, sentence_logits = _logits_of(plain_forward(**loss_options))
                logits = logits.flatten(0, -2).float()
                loss = cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=label_smoothing)
                if next_sentence_label is not None:
                    sentence_loss = cross_entropy(sentence_logits.float(), next_sentence_label, reduction="sum")
                    loss = torch.stack([loss, sentence_loss])
                return {"loss": loss}
            with torch.autocast(labels.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                logits, sentence_logits = _logits_of(plain_forward(**loss_options))
            scores = score(logits, labels, return_predictions)
            if next_sentence_label is not None:
                for name, value in score(sentence_logits, next_sentence_label).items():
                    scores[name] = torch.stack([scores[name], value])
            return scores

    forward.__signature__ = forward_signature  # what Trainer and generate() look at
    forward.sums_loss = True
    model.forward = types.MethodType(forward, model)


def _logits_of(outputs: ModelOutput) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The logits over the vocabulary, and those about the pair of sentences where the model has a head for it."""
    if "prediction_logits" not in outputs:
        return outputs.logits, None
    sentence_logits = "sop_logits" if "sop_logits" in outputs else "seq_relationship_logits"
    return outputs.prediction_logits, outputs[sentence_logits]


def _prediction_head(model: PreTrainedModel) -> str | None:
    """The name of the first module of the model's vocabulary head; None if the head must run at all positions."""
    config = model.config
    head = PREDICTION_HEADS.get(config.model_type)
    if config.model_type == "modernbert":
        config.reference_compile = False  # its own torch.compile would meet the selection; --torch_compile does not
        if config._attn_implementation == "flash_attention_2":  # the rows in its head are those of no batch
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
    """Within the block, `module` sees of its first argument (batch, length, ...) the selected rows (selected, ...).

    What prompt tuning put before the first of them is left out.
    """
    length = is_selected.size(1)
    hook = module.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, -length:][is_selected], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def sums_loss(model: nn.Module) -> bool:
    """Whether `use_summed_loss` was applied."""
    return getattr(model.forward, "sums_loss", False)


def score(logits: torch.Tensor, labels: torch.Tensor, return_predictions: bool = False) -> dict[str, torch.Tensor]:
    """Sum the negative log-likelihood and count the correct predictions, without a second tensor as large as `logits`.

    Args:
        logits: (..., vocabulary), any float type; each row's loss is computed in float32.
        labels: (...) int64, -100 where there is no target.

    Returns:
        loss: float64 scalar in nats (float32 where the device has no float64).
        num_correct: int64 scalar, the targets that have the highest logit (the first of equal ones).
        num_targets: int64 scalar.
        predictions, references: only if asked for; int64 (targets,), what is predicted and what is there.
    """
    rows, targets = logits.reshape(-1, logits.size(-1)), labels.reshape(-1)
    float64 = torch.float32 if logits.device.type == "mps" else torch.float64
    loss = torch.zeros((), dtype=float64, device=logits.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=logits.device)
    # A GPU's cache holds no chunk of use, and small ones leave it idle: there the chunks only bound the memory.
    size = ROWS_SCORED_AT_ONCE if logits.device.type == "cpu" else 16 * ROWS_SCORED_AT_ONCE
    predictions = []
    for some_rows, some_targets in zip(rows.split(size), targets.split(size), strict=True):
        some_rows = some_rows.float()
        is_target = some_targets != -100
        loss += cross_entropy(some_rows, some_targets, reduction="none").sum(dtype=float64)
        if return_predictions or logits.device.type != "cpu":
            best = some_rows.argmax(dim=1)
            is_best = is_target & (best == some_targets)
            predictions.append(best)
        else:  # argmax is slow on a CPU: it only decides, where the target's logit is the highest, whether it is first
            at_target = some_rows.gather(1, some_targets.clamp(min=0).unsqueeze(1)).squeeze(1)
            is_best = is_target & (at_target == some_rows.amax(dim=1))
            first_best = torch.from_numpy(some_rows[is_best].detach().numpy().argmax(axis=1))  # NumPy's is 4x as fast
            is_best[is_best.clone()] = first_best == some_targets[is_best]
        num_correct += is_best.sum()
    is_target = targets != -100
    scores = {"loss": loss, "num_correct": num_correct, "num_targets": is_target.sum()}
    if return_predictions:
        scores["predictions"] = torch.cat(predictions)[is_target]
        scores["references"] = targets[is_target]
    return scores
