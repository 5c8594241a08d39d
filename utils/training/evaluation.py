"""Exact evaluation: sums over all examples, each counted once, in float64."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import nn

from utils.examples.base import Examples
from utils.progress import progress
from utils.training.dataloaders import evaluation_loader


SCORES = ("loss", "num_correct", "num_targets")


@dataclass
class EvaluationSums:
    """Sums over a dataset and all processes.

    Attributes:
        loss: nats, for each loss of the model.
        num_correct, num_targets: for each loss of the model.
        num_tokens: tokens that the model read, without padding.
        metric: what the metric of `--metric` computed.
    """

    loss: list[float]
    num_correct: list[int]
    num_targets: list[int]
    num_tokens: int
    metric: dict[str, float] = field(default_factory=dict)


def score_dataset(
    model: nn.Module,
    dataset: Examples,
    data_collator: Callable,
    args,
    accelerator: Accelerator,
    num_losses: int,
    metric=None,
    after_batch: Callable[[], None] = lambda: None,
) -> EvaluationSums:
    """Score every example of the dataset once. All processes call this together.

    Batch b is scored by process b mod (number of processes). A process that has no batch left in the last round scores
    the first batch, since a sharded model needs all processes in its forward, but does not count it.

    Args:
        model: prepared by `use_summed_loss`, in whatever wrapper.
        args: TrainingArguments.
        num_losses: losses that the model returns.
        metric: a metric of `evaluate`, over predictions and references at the targets.
        after_batch: called after each batch; may raise to leave the evaluation.
    """
    size, world_size = args.eval_batch_size, args.world_size
    starts = range(0, len(dataset), size)
    rounds = math.ceil(len(starts) / world_size)
    own_batches = [i * world_size + args.process_index for i in range(rounds)]
    is_counted = [batch < len(starts) for batch in own_batches]
    batches = [
        range(start, min(start + size, len(dataset)))
        for start in (starts[batch] if counts else 0 for batch, counts in zip(own_batches, is_counted, strict=True))
    ]
    dataloader = evaluation_loader(dataset, batches, data_collator, args)
    autocast_dtype = torch.float16 if args.fp16_full_eval else torch.bfloat16 if args.bf16_full_eval else None
    dtype = torch.float32 if args.device.type == "mps" else torch.float64
    sums = torch.zeros((len(SCORES), num_losses), dtype=dtype, device=args.device)
    num_tokens = torch.zeros((), dtype=dtype, device=args.device)

    def score_batches() -> Iterator[int]:
        for batch, counts in zip(dataloader, is_counted, strict=True):
            batch = send_to_device(batch, args.device)
            scores = model(**batch, autocast_dtype=autocast_dtype, return_predictions=metric is not None)
            sums.add_(torch.stack([scores[name].to(dtype).reshape(-1) for name in SCORES]) * counts)
            num_tokens.add_(count_tokens(batch) * counts)
            if metric is not None:
                _add_to_metric(metric, scores["predictions"], scores["references"], counts)
            after_batch()
            yield len(batch["input_ids"])

    was_training = model.training
    model.eval()
    progress(score_batches(), sum(map(len, batches)), "evaluating", "blocks", args.process_index == 0)
    model.train(was_training)
    loss, *counts = accelerator.reduce(sums, "sum").tolist()
    num_correct, num_targets = ([round(count) for count in per_loss] for per_loss in counts)
    num_tokens = round(accelerator.reduce(num_tokens, "sum").item())
    return EvaluationSums(loss, num_correct, num_targets, num_tokens, {} if metric is None else metric.compute())


def evaluation_metrics(
    sums: EvaluationSums, loss_names: list[str], target_bytes: int | None, prefix: str
) -> dict[str, float]:
    """The figures of an evaluation: losses, perplexity, bits per byte and accuracies.

    Args:
        loss_names: of the model's losses; names of several losses appear in the results.
        target_bytes: UTF-8 bytes of the targets of the first loss; None if not known.
        prefix: of the metrics, e.g. "eval".
    """
    losses = [total / max(count, 1) for total, count in zip(sums.loss, sums.num_targets, strict=True)]
    accuracies = [total / max(count, 1) for total, count in zip(sums.num_correct, sums.num_targets, strict=True)]
    metrics = {f"{prefix}_loss": sum(losses)} | named_losses("{}_loss", loss_names, losses)
    metrics["perplexity"] = math.exp(losses[0]) if losses[0] < 700 else math.inf
    if target_bytes:
        metrics["bits_per_byte"] = sums.loss[0] / math.log(2) / target_bytes
        metrics[f"{prefix}_bytes"] = target_bytes
    return metrics | (named_losses("{}_accuracy", loss_names, accuracies) or {f"{prefix}_accuracy": accuracies[0]})


def named_losses(pattern: str, loss_names: list[str], values: list[float]) -> dict[str, float]:
    """One value per loss, by name; empty for a single loss, whose value is already the total."""
    if len(loss_names) == 1:
        return {}
    return {pattern.format(name): value for name, value in zip(loss_names, values, strict=True)}


def count_tokens(batch: dict[str, torch.Tensor]) -> int | torch.Tensor:
    """Tokens that the model reads, without padding."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else mask.sum()


def _add_to_metric(metric, predictions: torch.Tensor, references: torch.Tensor, is_counted: bool) -> None:
    pair = (predictions.tolist(), references.tolist()) if is_counted else ([], [])
    for some_predictions, some_references in gather_object([pair]):
        if some_references:
            metric.add_batch(predictions=some_predictions, references=some_references)
