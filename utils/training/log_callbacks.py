"""What a run prints: lines with loss, learning rate, gradient norm and tokens/s; on a terminal, a bar below them."""

import logging
import math

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerState

from utils.examples.stream_loader import StreamLoader
from utils.progress import format_duration
from utils.training.dataloaders import TrainingLoader


logger = logging.getLogger(__name__)


def training_line(logs: dict[str, float]) -> str:
    """The figures of a training step as text."""
    utilization = f" | MFU {logs['mfu']:.1%}" if "mfu" in logs else ""
    return (
        f"loss {logs['loss']:.4f} | lr {logs['learning_rate']:.3g} | grad norm {logs.get('grad_norm', 0.0):.3g} | "
        f"{logs['tokens_per_second']:,.0f} tokens/s{utilization}"
    )


def evaluation_line(logs: dict[str, float]) -> str | None:
    """The figures of an evaluation as text, after the prefix of their names; None if these are no such figures."""
    prefix = next((key.removesuffix("_perplexity") for key in logs if key.endswith("_perplexity")), None)
    if prefix is None:
        return None
    figures = {key.removeprefix(f"{prefix}_"): value for key, value in logs.items()}
    shown = [f"{prefix.replace('_', ' ', 1)} loss {figures['loss']:.4f}", f"perplexity {figures['perplexity']:.3f}"]
    if "bits_per_byte" in figures:
        shown.append(f"bits per byte {figures['bits_per_byte']:.4f}")
    accuracies = {key: value for key, value in figures.items() if key.endswith("accuracy")}
    shown += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in accuracies.items()]
    shown.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
    return " | ".join(shown)


def start_line(state: TrainerState, args: TrainingArguments, dataloader: TrainingLoader | StreamLoader) -> str:
    """What is about to be trained, as text."""
    start = f" from step {state.global_step:,}" if state.global_step else ""
    num_examples = dataloader.dataset.num_examples
    if num_examples is None:
        amount = "from a stream"
    else:
        accumulation, num_batches = args.gradient_accumulation_steps, len(dataloader)
        whole, steps = divmod(state.max_steps, math.ceil(num_batches / accumulation))
        amount = f"{whole + steps * accumulation / num_batches:.3g} epochs of {num_examples:,} blocks"
    return (
        f"training: {state.max_steps:,} steps{start}, {amount}, batches of {state.train_batch_size} x "
        f"{args.gradient_accumulation_steps} x {args.world_size} (blocks, accumulation, processes)"
    )


def log_line(state: TrainerState, logs: dict[str, float], is_stream: bool) -> str | None:
    """A step of the training or an evaluation as text; None for other logs.

    The length of a stream is not known, so its line has the number of the epoch, 1 for the first, and not a fraction.
    """
    if "loss" in logs:
        epoch = f"{math.floor(state.epoch) + 1}" if is_stream else f"{state.epoch:.2f}"
        return f"step {state.global_step:,}/{state.max_steps:,} | epoch {epoch} | {training_line(logs)}"
    line = evaluation_line(logs)
    return line if line is None or not state.global_step else f"step {state.global_step:,} | {line}"


class LogLines(TrainerCallback):
    """Prints plain lines."""

    with_eta = True

    def on_train_begin(self, args, state, control, train_dataloader, **kwargs):
        if state.is_world_process_zero:
            logger.info("%s", start_line(state, args, train_dataloader))

    def on_log(self, args, state, control, logs, train_dataloader, **kwargs):
        line = log_line(state, logs, _is_stream(train_dataloader))
        if state.is_world_process_zero and line is not None:
            eta = f" | ETA {format_duration(logs['eta_seconds'])}" if self.with_eta and "eta_seconds" in logs else ""
            logger.info("%s%s", line, eta)


class ProgressBar(LogLines):
    """Shows a bar with the remaining time, for a terminal. All that is logged meanwhile appears above it."""

    with_eta = False
    bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit=" steps")
            self.lines_above = logging_redirect_tqdm()
            self.lines_above.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.lines_above.__exit__(None, None, None)
            self.bar = None


def _is_stream(train_dataloader: TrainingLoader | StreamLoader | None) -> bool:
    return train_dataloader is not None and train_dataloader.dataset.num_examples is None
