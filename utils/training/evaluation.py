"""Exact evaluation: sums over all examples, each counted once, in float64."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import nn

from utils.errors import UsageError
from utils.examples.base import Examples
from utils.progress import progress
from utils.training.dataloaders import evaluation_loader


SCORES = ("loss", "num_correct", "num_targets")
# For batches of an evaluation whose size is not given. Beyond these numbers of tokens it does not become faster.
MAX_EVALUATION_TOKENS = {"cpu": 2**12, "gpu": 2**16}
MEMORY_SHARE = 0.25  # of the memory that is free
BYTES_PER_TOKEN_AND_WIDTH = 80  # a layer's widest tensors: about 20 times the hidden size, in float32
MOST_WIDTH = 16384  # where a configuration does not say how wide the model is


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
    size, world_size = evaluation_batch_size(model, dataset.block_size, args, accelerator), args.world_size
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


def evaluation_batch_size(model: nn.Module, block_size: int, args, accelerator: Accelerator) -> int:
    """Examples of a batch in evaluation: `--per_device_eval_batch_size`, or as many as fit into a share of the memory.

    The results are the same for any size. All processes call this together and get the same size.
    """
    if args.eval_batch_size is not None:
        return args.eval_batch_size
    if args.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(args.device)
    else:
        free_bytes = psutil.virtual_memory().available
    free_bytes = torch.tensor(float(free_bytes // args.world_size), device=args.device)
    free_bytes = accelerator.gather(free_bytes.reshape(1)).min().item()
    config = accelerator.unwrap_model(model).config
    width = getattr(config, "hidden_size", None) or MOST_WIDTH
    max_tokens = MAX_EVALUATION_TOKENS["cpu" if args.device.type == "cpu" else "gpu"]
    num_tokens = min(max_tokens, free_bytes * MEMORY_SHARE / (width * BYTES_PER_TOKEN_AND_WIDTH))
    return max(1, int(num_tokens // block_size))


def evaluation_metrics(
    sums: EvaluationSums, loss_names: list[str], target_bytes: int | None, prefix: str
) -> dict[str, float]:
    """The figures of an evaluation: losses, perplexity, bits per byte and accuracies.

    Args:
        loss_names: of the model's losses; names of several losses appear in the results.
        target_bytes: UTF-8 bytes of the targets of the first loss; None if not known.
        prefix: of the metrics, e.g. "eval". The first one is `eval_loss`.
    """
    losses = [total / max(count, 1) for total, count in zip(sums.loss, sums.num_targets, strict=True)]
    accuracies = [total / max(count, 1) for total, count in zip(sums.num_correct, sums.num_targets, strict=True)]
    metrics = {"loss": sum(losses)} | named_losses("{}_loss", loss_names, losses)
    metrics["perplexity"] = math.exp(losses[0]) if losses[0] < 700 else math.inf
    if target_bytes:
        metrics["bits_per_byte"] = sums.loss[0] / math.log(2) / target_bytes
        metrics["bytes"] = target_bytes
    metrics |= named_losses("{}_accuracy", loss_names, accuracies) or {"accuracy": accuracies[0]}
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


def without_prefix(metrics: dict[str, float], loss_names: list[str]) -> dict[str, float]:
    """The metrics of the prefix "eval" that the results also give without it: perplexity, bits per byte, named losses.

    With the prefix, TensorBoard and its like put a metric next to `eval_loss`, and not among those of the training.
    """
    names = ["perplexity", "bits_per_byte"]
    if len(loss_names) > 1:
        names += [f"{loss}_{figure}" for loss in loss_names for figure in ("loss", "accuracy")]
    return {name: metrics[f"eval_{name}"] for name in names if f"eval_{name}" in metrics}


def check_best_metric(args, loss_names: Sequence[str], set_names: Sequence[str] = (), metric=None) -> None:
    """Check that `--metric_for_best_model` is a result of the evaluations of this run.

    Args:
        args: TrainingArguments.
        loss_names: of the model's losses.
        set_names: of the evaluation sets; empty for a single set without a name.
        metric: of `--metric`, whose results have its name in theirs; None for none.

    Raises:
        UsageError: there is no such result.
    """
    if args.metric_for_best_model is None:
        return
    figures = ["loss", "accuracy"]
    if len(loss_names) > 1:
        figures = ["loss", *(f"{loss}_{figure}" for loss in loss_names for figure in figures)]
    prefixes = [f"eval_{name}_" for name in set_names] or ["eval_"]
    known = [prefix + figure for prefix in prefixes for figure in figures]
    name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    is_of_metric = metric is not None and any(name.startswith(f"{prefix}{metric.name}_") for prefix in prefixes)
    if name not in known and not is_of_metric:
        raise UsageError(f"--metric_for_best_model {name}: no such result; there are {', '.join(known)}")


def value_to_compare(metrics: dict[str, float], metric_for_best_model: str | None) -> float:
    """The result that models are compared by: `--metric_for_best_model`, or `eval_loss`.

    Raises:
        UsageError: there is no such result.
    """
    name = f"eval_{(metric_for_best_model or 'loss').removeprefix('eval_')}"
    if name not in metrics:
        raise UsageError(f"--metric_for_best_model {name}: no such result; there are {', '.join(metrics)}")
    return metrics[name]


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
