"""The last step of a script: everything a run leaves for its readers."""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.models.adapter_saving import save_merged_model
from utils.reports.model_card import ModelCardText, write_model_card
from utils.reports.summary import print_summary
from utils.training.output_dir import EVAL_ARGS, write_run_args
from utils.training.trainer import LMTrainer


def write_report(
    trainer: LMTrainer,
    card_text: ModelCardText,
    model_args: ModelArguments,
    data_args: DataArguments,
    adapter_args: AdapterArguments,
    results: dict[str, float],
    settings: dict | None = None,
) -> dict[str, float]:
    """After training, save the trainer's state, loss.png and the model card; always print the summary.

    If the run was already complete, those of the run that trained it stay as they are. An evaluation alone leaves its
    flags in eval_args.yaml. With `--merge_adapter`, the merged model is saved too; with `--push_to_hub`, the output
    folder is uploaded.

    Args:
        results: all figures of training and evaluation.
        settings: hyperparameters of the objective, for the model card.

    Returns:
        `results` and the figures of the run as a whole, see `run_figures`.
    """
    args = trainer.args
    is_reported = trainer.is_already_complete and (Path(args.output_dir) / "README.md").exists()
    if args.do_train and not is_reported:
        trainer.save_state()
    results = results | run_figures(trainer)
    if trainer.is_world_process_zero():
        save_all_results(results, args.output_dir)
        if args.do_train and not is_reported:
            from utils.reports.loss_plot import plot_losses  # with matplotlib, an eighth of the time to the first step

            set_names = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else []
            figure = plot_losses(trainer.state.log_history, loss_units(trainer), set_names)
            figure.savefig(f"{args.output_dir}/loss.png", dpi=120)
            write_model_card(trainer, card_text, model_args, data_args, results, settings or {})
        elif not args.do_train:
            write_run_args(args.output_dir, trainer.run_args, EVAL_ARGS)
        if adapter_args.merge_adapter:
            save_merged_model(trainer.model, trainer.adapter, trainer.processing_class, args.output_dir)
        print_summary(results, args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()
    return results


def run_figures(trainer: LMTrainer) -> dict[str, float]:
    """The figures of the run as a whole, the largest of all processes. All processes call this together.

    Returns:
        `total_runtime`, seconds since the flags were read; `peak_memory_mb`, the largest resident set of a process
        without its workers, in units of 10^6 bytes; on a GPU also `peak_gpu_memory_mb`, the most memory that tensors
        took there.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    figures = {
        "total_runtime": time.monotonic() - trainer.args.start_time,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
    }
    device = trainer.args.device
    if device.type == "cuda":
        figures["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    of_processes = trainer.accelerator.gather(torch.tensor([list(figures.values())], device=device))
    return dict(zip(figures, [round(value, 1) for value in of_processes.amax(dim=0).tolist()], strict=True))


def save_all_results(results: dict[str, float], output_dir: str | Path) -> None:
    """Add the results to all_results.json; those of an earlier training in the folder stay."""
    path = Path(output_dir) / "all_results.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(earlier | results, indent=4, sort_keys=True) + "\n")


def loss_units(trainer: LMTrainer) -> dict[str, str]:
    """The unit of each loss: the first one is a mean over tokens, a second one over pairs of texts."""
    token = trainer.target_name.replace("_", " ").removesuffix("s")
    first, *others = trainer.losses
    return {first: f"nats per {token}"} | dict.fromkeys(others, "nats per pair")
