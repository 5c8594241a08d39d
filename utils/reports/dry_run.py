"""For `--dry_run`: two real updates and one batch of the evaluation, and what they say about the whole run."""

import math
import time

import torch
from accelerate.utils import send_to_device

from utils.progress import format_duration
from utils.reports.report import run_figures
from utils.training.evaluation import evaluation_batch_size
from utils.training.preparation import prepare_run, training_length
from utils.training.trainer import LMTrainer


FORMATS = {
    "seconds_per_step": "{:.3g}".format,
    "training_seconds": format_duration,
    "evaluation_seconds": format_duration,
}


def print_dry_run(trainer: LMTrainer) -> dict[str, float]:
    """Make at most two updates and evaluate a batch; print sizes, memory and times of the run. Nothing is written.

    Returns:
        `parameters`, `trained_parameters`; in training `steps`, `tokens` of the whole run (of a stream: at most),
        `seconds_per_step` (of the last update made), `checkpoint_mb` (10^6 bytes) and `training_seconds`; in
        evaluation `evaluation_seconds`, of each; `peak_memory_mb` and, on a GPU, `peak_gpu_memory_mb`, of the largest
        process.
    """
    parameters = list(trainer.model.parameters())
    figures = {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }
    if trainer.args.do_train:
        figures |= _measure_training(trainer)
    if trainer.args.do_eval:
        figures["evaluation_seconds"] = _measure_evaluation(trainer)
    memory = {name: value for name, value in run_figures(trainer).items() if name.endswith("memory_mb")}
    figures |= memory
    if trainer.is_world_process_zero():
        print("\ndry run: at most two updates and one evaluation batch were made, nothing was written")
        for name, value in figures.items():
            print(f"{name.replace('_', ' '):>20}  {FORMATS.get(name, '{:,.0f}'.format)(value)}", flush=True)
    return figures


def _measure_training(trainer: LMTrainer) -> dict[str, float]:
    args = trainer.args
    trainer.prepare_for_training()
    dataloader = trainer.get_train_dataloader()
    _, max_steps, num_epochs = training_length(args, len(dataloader))
    model = prepare_run(trainer, dataloader, max_steps, num_epochs, checkpoint=None)
    dataloader.set_epoch(0, 0)
    batches = iter(dataloader)
    seconds = math.nan
    num_batches = min(args.gradient_accumulation_steps, len(dataloader))
    for _ in range(min(2, max_steps, len(dataloader) // num_batches)):
        micro_batches = trainer.next_batches(batches, num_batches)
        start = time.monotonic()
        trainer.update(model, micro_batches, epoch=0.0)
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        seconds = time.monotonic() - start
    examples = max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    saved = [
        parameter for parameter in trainer.model.parameters() if trainer.adapter is None or parameter.requires_grad
    ]
    state = (
        []
        if args.save_only_model
        else [
            value for values in trainer.optimizer.state.values() for value in values.values() if torch.is_tensor(value)
        ]
    )
    return {
        "steps": max_steps,
        "tokens": examples * trainer.train_dataset.block_size,
        "seconds_per_step": seconds,
        "training_seconds": seconds * max_steps,
        "checkpoint_mb": sum(tensor.numel() * tensor.element_size() for tensor in [*saved, *state]) / 1e6,
    }


@torch.no_grad()
def _measure_evaluation(trainer: LMTrainer) -> float:
    """Seconds of an evaluation of all sets, from one batch."""
    args, sets = trainer.args, trainer.eval_dataset
    sets = list(sets.values()) if isinstance(sets, dict) else [sets]
    model = trainer.model_to_evaluate().eval()
    size = evaluation_batch_size(model, sets[0].block_size, args, trainer.accelerator)
    examples = [sets[0][index] for index in range(min(size, len(sets[0])))]
    batch = send_to_device(trainer.data_collator(examples), args.device)
    start = time.monotonic()
    model(**batch, autocast_dtype=torch.bfloat16 if args.bf16_full_eval else None)["loss"].sum().item()
    seconds = time.monotonic() - start
    num_examples = sum(map(len, sets))
    return seconds * num_examples / len(examples) / args.world_size
