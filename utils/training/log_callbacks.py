"""What a run prints: lines with loss, learning rate, gradient norm, tokens/s and ETA, or a bar on a terminal."""

import logging
import sys

from tqdm import tqdm
from transformers.trainer_callback import TrainerCallback

from utils.progress import format_duration


logger = logging.getLogger(__name__)


def training_line(logs: dict[str, float]) -> str:
    """The figures of a training step as text."""
    return (
        f"loss {logs['loss']:.4f} | lr {logs['learning_rate']:.3g} | grad norm {logs.get('grad_norm', 0.0):.3g} | "
        f"{logs['tokens_per_second']:,.0f} tokens/s | ETA {format_duration(logs['eta_seconds'])}"
    )


def evaluation_line(logs: dict[str, float]) -> str:
    """The figures of an evaluation as text."""
    shown = [f"eval loss {logs['eval_loss']:.4f}", f"perplexity {logs['perplexity']:.3f}"]
    if "bits_per_byte" in logs:
        shown.append(f"bits per byte {logs['bits_per_byte']:.4f}")
    accuracies = {key.removeprefix("eval_"): logs[key] for key in logs if key.endswith("accuracy")}
    shown += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in accuracies.items()]
    shown.append(f"{logs['eval_tokens_per_second']:,.0f} tokens/s")
    return " | ".join(shown)


class LogLines(TrainerCallback):
    """Prints plain lines, for a file or a pipe."""

    def on_train_begin(self, args, state, control, train_dataloader, **kwargs):
        if state.is_world_process_zero:
            start = f" from step {state.global_step:,}" if state.global_step else ""
            is_stream = train_dataloader.dataset.num_examples is None
            logger.info(
                "training: %s steps%s, %s, batches of %s x %s x %s (blocks, accumulation, processes)",
                f"{state.max_steps:,}", start, "from a stream" if is_stream else f"{state.num_train_epochs} epochs",
                args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size,
            )  # fmt: skip

    def on_log(self, args, state, control, logs, **kwargs):
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            step = f"step {state.global_step:,}/{state.max_steps:,} | epoch {state.epoch:.2f}"
            logger.info("%s | %s", step, training_line(logs))
        elif "eval_loss" in logs:
            step = f"step {state.global_step:,} | " if state.global_step else ""
            logger.info("%s%s", step, evaluation_line(logs))


class ProgressBar(TrainerCallback):
    """Shows a bar with the latest figures, for a terminal; evaluations stay above it as lines."""

    bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit=" steps")

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs, **kwargs):
        if not state.is_world_process_zero:
            return
        if "loss" in logs and self.bar is not None:
            self.bar.set_postfix_str(training_line(logs))
        elif "eval_loss" in logs:
            tqdm.write(f"step {state.global_step:,} | {evaluation_line(logs)}", file=sys.stderr)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
