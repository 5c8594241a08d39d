"""Why a run ended early, in one line, and how it continues."""

from pathlib import Path

from utils.config.training_arguments import LMTrainingArguments
from utils.errors import EarlyEnd
from utils.training.checkpoint_files import find_corruption
from utils.training.output_dir import list_checkpoints


def stopped_early(args: LMTrainingArguments, last_saved_step: int | None, reason: str, exit_code: int) -> EarlyEnd:
    """The end of a run that the same command resumes."""
    flags = ["--overwrite_output_dir", "false"] if args.overwrite_output_dir else []
    if args.resume_from_checkpoint and last_good_checkpoint(args.output_dir) is not None:
        flags += ["--resume_from_checkpoint", "true"]
    saved = f"step {last_saved_step:,} is saved" if last_saved_step else "there is nothing new to save"
    return EarlyEnd(f"{reason}; {saved} in {args.output_dir}", exit_code, flags)


def diverged(args: LMTrainingArguments, step: int, what: str, learning_rate: float) -> EarlyEnd:
    """The end of a run whose numbers are no longer finite."""
    checkpoint = last_good_checkpoint(args.output_dir)
    saved = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    return EarlyEnd(
        f"step {step:,}: the training has diverged: {what}, learning rate {learning_rate:.3g}; {saved}; "
        "try a lower --learning_rate, more --warmup_steps or a lower --max_grad_norm",
        1,
    )


def not_saved(args: LMTrainingArguments, checkpoint: Path, reason: str) -> EarlyEnd:
    """The end of a run whose checkpoint could not be written."""
    good = last_good_checkpoint(args.output_dir)
    earlier = f"{good} is unchanged" if good else "there is no earlier one"
    return EarlyEnd(f"{checkpoint} could not be saved: {reason}; {earlier}; make room and start again", 1)


def last_good_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint whose files have the recorded sizes."""
    checkpoints = reversed(list_checkpoints(output_dir))
    return next((path for path in checkpoints if find_corruption(path, read_all=False) is None), None)
