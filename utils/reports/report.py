"""The last step of a script: everything a run leaves for its readers."""

from pathlib import Path

from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.models.adapter_saving import save_merged_model
from utils.reports.loss_plot import plot_losses
from utils.reports.model_card import ModelCardText, write_model_card
from utils.reports.summary import print_summary
from utils.training.trainer import LMTrainer


def write_report(
    trainer: LMTrainer,
    card_text: ModelCardText,
    model_args: ModelArguments,
    data_args: DataArguments,
    adapter_args: AdapterArguments,
    results: dict[str, float],
    settings: dict | None = None,
) -> None:
    """After training, save the trainer's state, loss.png and the model card; always print the summary.

    If the run was already complete, those of the run that trained it stay as they are. With `--merge_adapter`, the
    merged model is saved too; with `--push_to_hub`, the output folder is uploaded.

    Args:
        results: all figures of training and evaluation.
        settings: hyperparameters of the objective, for the model card.
    """
    args = trainer.args
    is_reported = trainer.is_already_complete and (Path(args.output_dir) / "README.md").exists()
    if args.do_train and not is_reported:
        trainer.save_state()
    if trainer.is_world_process_zero():
        if args.do_train and not is_reported:
            plot_losses(trainer.state.log_history, f"{args.output_dir}/loss.png")
            write_model_card(trainer, card_text, model_args, data_args, results, settings or {})
        if adapter_args.merge_adapter:
            save_merged_model(trainer.model, trainer.adapter, trainer.processing_class, args.output_dir)
        print_summary(results, args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()
