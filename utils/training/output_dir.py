"""The output folder of a run: whether it may be used, the checkpoint to resume from, and what may be removed."""

import logging
import re
import shutil
import tempfile
from pathlib import Path

import yaml

from utils.config.data_arguments import DataArguments
from utils.config.parser import RunArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.training.checkpoint_files import UNFINISHED, find_corruption, remove, remove_leftovers
from utils.training.resumption import RUN_ARGS, check_flags


logger = logging.getLogger(__name__)

EVAL_ARGS = "eval_args.yaml"  # of an evaluation alone, which leaves the file of a training in the folder as it is
RESULTS = (
    "train_results.json", "eval_results.json", "all_results.json", "trainer_state.json", "loss.png", RUN_ARGS,
    EVAL_ARGS,
)  # fmt: skip
STARTED = {RUN_ARGS, "runs"}  # left by a training run that was killed before its first checkpoint


def find_checkpoint(
    training_args: LMTrainingArguments, data_args: DataArguments, run_args: RunArguments
) -> str | None:
    """Check the output folder, without changing anything in it, and find the checkpoint to resume from.

    Args:
        run_args: the flags that were given, compared with those of the run that wrote the checkpoint.

    Returns:
        `--resume_from_checkpoint` if given, else the newest intact checkpoint in the folder; None to start from the
        beginning, and with `--preprocess_only`, which writes nothing there.

    Raises:
        UsageError: the output folder is a file, not writable, or in use by something else; or the checkpoint does not
            exist, is corrupt, or is from a run with other flags; see `check_flags`.
    """
    if data_args.preprocess_only:
        return None
    folder = Path(training_args.output_dir)
    _require_writable("--output_dir", folder)
    if training_args.report_to and training_args.do_train:
        _require_writable("--logging_dir", Path(training_args.logging_dir))
    asked_for = training_args.resume_from_checkpoint
    if asked_for and str(asked_for).lower() != "false" and training_args.overwrite_output_dir:
        raise UsageError("--resume_from_checkpoint and --overwrite_output_dir contradict each other: leave out one")
    if asked_for and str(asked_for).lower() not in ("true", "false"):
        if not (Path(asked_for) / "trainer_state.json").is_file():
            raise UsageError(f"--resume_from_checkpoint {asked_for}: no checkpoint there (no trainer_state.json)")
        if problem := find_corruption(Path(asked_for)):
            raise UsageError(f"--resume_from_checkpoint {asked_for} is corrupt: {problem}; give another checkpoint")
        check_flags(Path(asked_for), run_args)
        return asked_for
    if not training_args.do_train or training_args.overwrite_output_dir:
        return None
    checkpoints = list_checkpoints(folder)
    if str(asked_for).lower() == "true" and not checkpoints:
        raise UsageError(f"--resume_from_checkpoint: there is no checkpoint of this suite in {folder}")
    if str(asked_for).lower() == "false" and checkpoints:
        raise UsageError(f"--resume_from_checkpoint false: {folder} has one; to start afresh, --overwrite_output_dir")
    for checkpoint in reversed(checkpoints):
        problem = find_corruption(checkpoint)
        if problem is None:
            logger.info("resuming from %s (--overwrite_output_dir starts afresh)", checkpoint)
            check_flags(checkpoint, run_args)
            return str(checkpoint)
        logger.warning("%s is corrupt and skipped, the one before it is used: %s", checkpoint, problem)
    if checkpoints:
        raise UsageError(
            f"--output_dir {folder}: no checkpoint to resume from, all are corrupt, {checkpoints[-1].name} because "
            f"{find_corruption(checkpoints[-1])}; --overwrite_output_dir starts afresh"
        )
    foreign = [path for path in (folder.iterdir() if folder.is_dir() else ()) if not _is_of_a_started_run(path)]
    if foreign:
        raise UsageError(
            f"--output_dir {folder} is not empty and has no checkpoint to resume from: choose another folder, or "
            "--overwrite_output_dir to write into this one"
        )
    return None


def _require_writable(flag: str, folder: Path) -> None:
    """Raise UsageError unless the folder can be written to, or created. What this creates is removed again."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{flag} {folder} is a file: give a folder")
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise UsageError(f"{flag} {folder}: {parent} is not a folder that you may write to") from error


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of this suite in `folder`, oldest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    ours = [path for path in found if (path / RUN_ARGS).is_file() and (path / "trainer_state.json").is_file()]
    return sorted(ours, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def start_output_dir(training_args: LMTrainingArguments, run_args: dict) -> None:
    """Prepare the folder for training: with `--overwrite_output_dir` without the files of an earlier run."""
    if training_args.overwrite_output_dir:
        clear_output_dir(training_args.output_dir)
    remove_leftovers(training_args.output_dir)
    write_run_args(training_args.output_dir, run_args)


def clear_output_dir(folder: str | Path) -> None:
    """Remove the checkpoints and results of an earlier run of this suite, so that they do not mix with new ones.

    Other files stay, including checkpoints that another program wrote.
    """
    if not (Path(folder) / RUN_ARGS).is_file() and not list_checkpoints(folder):
        return
    for checkpoint in list_checkpoints(folder):
        remove(checkpoint)
    for name in RESULTS:
        (Path(folder) / name).unlink(missing_ok=True)
    shutil.rmtree(Path(folder) / "runs", ignore_errors=True)


def write_run_args(folder: str | Path, run_args: dict, name: str = RUN_ARGS) -> None:
    """Write the flags that were given (from `parse_arguments`) to a file that repeats the run."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(run_args), sort_keys=False, allow_unicode=True)
    (Path(folder) / name).write_text(text, encoding="utf-8")


def _is_of_a_started_run(path: Path) -> bool:
    return path.name in STARTED or path.name.endswith(UNFINISHED)
