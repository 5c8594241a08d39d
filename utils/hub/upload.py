"""Uploads to the hub: write access is looked at first, checkpoints go up on the way, all results at the end."""

import concurrent.futures
import fnmatch
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import disable_progress_bars
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import HubStrategy

from utils.config.training_arguments import LMTrainingArguments
from utils.errors import EarlyEnd, UsageError
from utils.hub.errors import explain_hub_error


logger = logging.getLogger(__name__)

NOT_UPLOADED = "checkpoint-*"  # folders of the output that go up as --hub_strategy says, or not at all
# Files of a checkpoint that only a resumption needs.
STATES = ("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "pytorch_model_fsdp*", "global_step*", "latest")


def prepare_upload(training_args: LMTrainingArguments, run_args: dict) -> None:
    """With `--push_to_hub`: make sure of the repository and of write access to it, before anything expensive.

    The repository is created if need be, private with `--hub_private_repo`; nothing is written into it. The first
    process does that; `hub_model_id` becomes the full name, with the owner.

    Args:
        run_args: the flags that were given, from `parse_arguments`.

    Raises:
        UsageError: a name that the hub does not take, no or a wrong token, no write access, no network.
    """
    if not training_args.push_to_hub:
        idle = [flag for flag in run_args if flag.startswith("hub_")]
        idle += ["hub_token"] if training_args.hub_token else []
        if idle:
            logger.warning("%s: no effect without --push_to_hub", ", ".join(f"--{flag}" for flag in idle))
        return
    if not training_args.do_train:
        raise UsageError("--push_to_hub goes with --do_train: an evaluation makes no model that could be uploaded")
    if training_args.process_index != 0:
        return
    name = training_args.hub_model_id or Path(training_args.output_dir).absolute().name
    if not (training_args.hub_token or get_token()):
        raise UsageError(
            f"--push_to_hub to {name}: wrong access: there is no token; give one that may write with --hub_token, in "
            "HF_TOKEN, or by `hf auth login`"
        )
    api = HfApi(token=training_args.hub_token)
    try:
        repository = api.create_repo(name, private=training_args.hub_private_repo, exist_ok=True)
        # What an upload begins with: the hub says of each file how it wants it, to those who may write.
        files = [CommitOperationAdd("README.md", b"-")]
        api.preupload_lfs_files(repository.repo_id, files, revision=training_args.hub_revision)
    except HFValidationError as error:
        raise UsageError(
            f"--hub_model_id {name}: the hub takes letters, digits, -, _ and . in names; give another one"
        ) from error
    except Exception as error:  # of many types: the token, the access, the network
        raise UsageError(f"--push_to_hub to {name}: {explain_hub_error(error, name, is_upload=True)}") from error
    training_args.hub_model_id = repository.repo_id
    if training_args.report_to and not Path(training_args.logging_dir).is_relative_to(training_args.output_dir):
        logger.warning(
            "hub: --logging_dir %s is outside --output_dir: its TensorBoard traces are not uploaded",
            training_args.logging_dir,
        )
    logger.info("hub: the results go to %s (%s)", repository, training_args.hub_strategy.value)


class CheckpointUploads(TrainerCallback):
    """Uploads checkpoints in the background, while training goes on, as `--hub_strategy` says.

    end: none. every_save (default): the model of each checkpoint, and the TensorBoard traces so far. checkpoint: also
    all that a resumption needs, as the folder last-checkpoint. all_checkpoints: the same as checkpoint-N.

    A save is left out while the upload before it is under way (not with all_checkpoints or `--hub_always_push`). What
    goes up is a snapshot, of hard links, since the checkpoint may be deleted and the traces grow in the meantime. An
    upload that fails is a warning, and training goes on: what it had, the next one or that of the results has.
    """

    def __init__(self):
        self.running: dict[Path, concurrent.futures.Future] = {}  # by the snapshot
        self.left_out: Path | None = None  # the newest checkpoint, if it was
        self.api: HfApi | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            left_by_killed_run = set(Path(args.output_dir).glob("checkpoint-upload-*")) - set(self.running)
            for snapshot in left_by_killed_run:
                shutil.rmtree(snapshot)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or args.hub_strategy == HubStrategy.END:
            return
        self._report(args)
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        may_wait = args.hub_always_push or args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
        if self.running and not may_wait:
            self.left_out = checkpoint
        else:
            self._start(args, checkpoint)

    def finish(self, args: LMTrainingArguments) -> None:
        """Wait until all uploads have ended."""
        concurrent.futures.wait(self.running.values())
        self._report(args)
        if self.left_out is not None and args.hub_strategy == HubStrategy.CHECKPOINT:
            self._start(args, self.left_out)
            concurrent.futures.wait(self.running.values())
            self._report(args)

    def _start(self, args: LMTrainingArguments, checkpoint: Path) -> None:
        self.left_out = None
        self.api = self.api or HfApi(token=args.hub_token)
        snapshot = take_snapshot(checkpoint, args.hub_strategy)
        self.running[snapshot] = self.api.run_as_future(upload_snapshot, self.api, args, snapshot, checkpoint.name)

    def _report(self, args: LMTrainingArguments) -> None:
        for snapshot, upload in list(self.running.items()):
            if not upload.done():
                continue
            checkpoint = snapshot.name.replace("upload-", "")
            if upload.exception() is None:
                logger.info("hub: %s is uploaded", checkpoint)
            else:
                reason = " ".join(explain_hub_error(upload.exception(), args.hub_model_id, is_upload=True).split())
                logger.warning("hub: the upload of %s failed, training goes on: %s", checkpoint, reason)
            shutil.rmtree(snapshot)
            del self.running[snapshot]


def take_snapshot(checkpoint: Path, strategy: HubStrategy) -> Path:
    """Lay out, in a folder beside the checkpoint, what goes up of it. Files are hard links.

    Returns:
        The folder. In it are the folder `repository`, the model and the traces, and, as the strategy says,
        `checkpoint`, all that a resumption needs.
    """
    snapshot = checkpoint.with_name(checkpoint.name.replace("checkpoint-", "checkpoint-upload-"))
    for path in checkpoint.rglob("*"):
        if not path.is_file():
            continue
        place = path.relative_to(checkpoint)
        if not any(fnmatch.fnmatch(place.parts[0], pattern) for pattern in STATES):
            _link(path, snapshot / "repository" / place)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            _link(path, snapshot / "checkpoint" / place)
    if (checkpoint.parent / "runs").is_dir():
        shutil.copytree(checkpoint.parent / "runs", snapshot / "repository" / "runs")
    return snapshot


def upload_snapshot(api: HfApi, args: LMTrainingArguments, snapshot: Path, name: str) -> None:
    """Upload what `take_snapshot` laid out. In two commits, so that the weights, which are in both, go up once."""
    options = {"repo_id": args.hub_model_id, "revision": args.hub_revision}
    message = f"Training in progress, {name}"
    api.upload_folder(folder_path=snapshot / "repository", commit_message=message, **options)
    if (snapshot / "checkpoint").is_dir():
        place = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else name
        folder = snapshot / "checkpoint"
        api.upload_folder(folder_path=folder, path_in_repo=place, commit_message=f"{message}, to resume", **options)


def _link(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, to)
    except OSError:  # a file system without hard links
        shutil.copy2(path, to)


def upload_results(training_args: LMTrainingArguments) -> None:
    """Upload the output folder, without its checkpoints.

    Raises:
        EarlyEnd: it failed. The message has the command that does it again.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()
    name, folder = training_args.hub_model_id, training_args.output_dir
    revision = training_args.hub_revision
    try:
        commit = HfApi(token=training_args.hub_token).upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="End of training",
            revision=revision,
            ignore_patterns=[NOT_UPLOADED],
        )
    except Exception as error:  # of many types: the network, the access, a file that the hub does not take
        command = ["hf", "upload", name, str(folder), ".", *(["--revision", revision] if revision else [])]
        command = shlex.join([*command, "--exclude", NOT_UPLOADED])
        reason = explain_hub_error(error, name, is_upload=True)
        raise EarlyEnd(
            f"error: --push_to_hub to {name}: the upload failed: {reason}. The results are complete in {folder}; this "
            f"uploads them, with the token in HF_TOKEN or of `hf auth login`: {command}",
            exit_code=1,
        ) from error
    logger.info("hub: uploaded, %s", commit.commit_url)
