"""Training steps of LMTrainer and of the plain Trainer, from the same weights on the same batches."""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer_callback import PrinterCallback

from benchmarks.measurement import interleaved, median_ratio, print_ratio, synchronize, verdict
from utils.training.batch_sampler import epoch_order


FLAG_HELP = {
    "n_layer": "layers of the GPT-2",
    "n_embd": "hidden size of the GPT-2, a multiple of 64 (the size of a head)",
    "vocab_size": "vocabulary of the GPT-2",
    "block_size": "tokens in a block",
    "batch_size": "blocks in a batch",
    "steps": "steps of each training run, including warm-up",
    "warm_up_steps": "steps at the start of each run that are not measured",
    "eval_blocks": "blocks to evaluate on, a multiple of the batch size",
    "repetitions": "runs of each side, interleaved",
    "learning_rate": "learning rate",
    "seed": "seed of weights, tokens and order",
}


def make_parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_flags(parser: argparse.ArgumentParser, defaults: dict[str, Any], are_optional: bool = False) -> None:
    """Add a flag for each default. With `are_optional`, a flag that is not given is None."""
    for name, default in defaults.items():
        shown = "" if are_optional else f" (default: {default})"
        parser.add_argument(
            f"--{name}", type=type(default), default=None if are_optional else default, help=FLAG_HELP[name] + shown
        )


def check_flags(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    if flags.warm_up_steps < 1:
        parser.error("--warm_up_steps: give 1 or more")
    if flags.steps <= flags.warm_up_steps + 1:
        parser.error("--steps: give at least two more than --warm_up_steps")


@dataclass
class Comparison:
    """Two ways to train the same model on the same blocks in the same order.

    Attributes:
        trainers: of "ours" and "baseline", a function that returns a Trainer whose model has the initial weights.
        title: the name of the comparison in the output.
        target_ratio: how many times as fast a training step of ours should be.
        loss_tolerance: largest relative difference between the losses of a step.
        baseline_loss_scale: what turns the baseline's losses into means over the targets.
    """

    trainers: dict[str, Callable[[], Trainer]]
    title: str
    target_ratio: float
    loss_tolerance: float
    baseline_loss_scale: float = 1.0


def training_options(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the TrainingArguments of both sides are given."""
    return {
        "output_dir": str(folder / "outputs"),
        "max_steps": flags.steps,
        "per_device_train_batch_size": flags.batch_size,
        "per_device_eval_batch_size": flags.batch_size,
        "learning_rate": flags.learning_rate,
        "bf16": False,
        "tf32": False if torch.cuda.is_available() else None,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": ["none"],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "seed": flags.seed,
    }


def plain_trainer(model: PreTrainedModel, args: TrainingArguments, **kwargs: Any) -> Trainer:
    """The library's own Trainer, or AdapterTrainer, with the training examples in the order of LMTrainer."""
    trainer_class = Trainer
    if hasattr(model, "adapters_config"):
        from adapters import AdapterTrainer as trainer_class
    trainer = trainer_class(model=model, args=args, data_collator=default_data_collator, **kwargs)
    trainer.remove_callback(PrinterCallback)
    order = epoch_order(len(kwargs["train_dataset"]), args.seed, epoch=0).tolist()
    trainer._get_train_sampler = lambda *args: order
    return trainer


class StepTimer(TrainerCallback):
    """Times the training steps, in seconds.

    Attributes:
        steps: of each step, between `on_step_begin` and `on_step_end`.
        ends: when each step ended. The time between two ends includes making the batch.
    """

    def __init__(self):
        self.steps: list[float] = []
        self.ends: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        synchronize()
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        self.ends.append(time.perf_counter())
        self.steps.append(self.ends[-1] - self.start)


def compare_training(flags: argparse.Namespace, comparison: Comparison) -> bool:
    """Train both ways, print the times, and return whether the losses agree."""
    steps = {name: [] for name in comparison.trainers}
    steps_with_batches = {name: [] for name in comparison.trainers}
    losses = {}
    for _, name in interleaved(comparison.trainers, flags.repetitions):
        timer = StepTimer()
        trainer = comparison.trainers[name]()
        trainer.add_callback(timer)
        recorded = record_losses(trainer)
        trainer.train()
        losses[name] = torch.stack(recorded).double().tolist()
        steps[name] += timer.steps[flags.warm_up_steps :]
        steps_with_batches[name] += np.diff(timer.ends)[flags.warm_up_steps - 1 :].tolist()
        del trainer, recorded
        gc.collect()  # a Trainer is part of reference cycles, which keep the model and the optimizer state alive

    tokens = flags.batch_size * flags.block_size
    print(f"{comparison.title}: medians of {len(steps['ours'])} steps of {tokens:,} tokens")
    for title, seconds in (("per step", steps), ("per step and batch", steps_with_batches)):
        for name in comparison.trainers:
            median = statistics.median(seconds[name])
            bounds = f"{1000 * min(seconds[name]):.0f} to {1000 * max(seconds[name]):.0f}"
            print(f"  {name}: {1000 * median:.1f} ms {title} ({bounds}), {tokens / median:,.0f} tokens/s")
    print_ratio(comparison.title, steps, comparison.target_ratio)
    print(f"     including the batches: {median_ratio(steps_with_batches):.2f}x")

    baseline_losses = [loss * comparison.baseline_loss_scale for loss in losses["baseline"]]
    difference = max(
        abs(ours - baseline) / baseline for ours, baseline in zip(losses["ours"], baseline_losses, strict=True)
    )
    is_equal = difference <= comparison.loss_tolerance
    print(
        f"{verdict(is_equal)} equal losses: {losses['ours'][0]:.6f} in the first step, {losses['ours'][-1]:.6f} in "
        f"the last, largest relative difference {difference:.1e}",
        flush=True,
    )
    return is_equal


def record_losses(trainer: Trainer) -> list[torch.Tensor]:
    """A list to which the trainer appends the loss of each step, which its log would round."""
    losses = []
    plain_training_step = trainer.training_step

    def training_step(*args, **kwargs) -> torch.Tensor:
        losses.append(plain_training_step(*args, **kwargs))
        return losses[-1]

    trainer.training_step = training_step
    return losses
