"""Uploads to the Hub: a check of write access up front, checkpoints during training, all results at the end."""

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

from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import EarlyEnd, UsageError
from utils.hub.errors import explain_hub_error


logger = logging.getLogger(__name__)

# The final upload skips these folders of the output; --hub_strategy says whether checkpoints are uploaded.
CHECKPOINT_FOLDERS = "checkpoint-*"

# Files in a checkpoint that are needed only to resume training.
RESUMPTION_FILES = (
    "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "pytorch_model_fsdp*", "global_step*", "latest",
)  # fmt: skip


def prepare_upload(training_args: LMTrainingArguments, data_args: DataArguments) -> None:
    """With `--push_to_hub`: check that the repository can be written to, before anything expensive.

    The first process creates the repository if necessary, private with `--hub_private_repo`, and writes nothing into
    it. It sets `training_args.hub_model_id` to the full name, with the owner.

    Raises:
        UsageError: an invalid repository name, a missing or wrong token, no write access, no network.
    """
    if data_args.preprocess_only or training_args.dry_run or not training_args.push_to_hub:
        return
    if not training_args.do_train:
        raise UsageError("--push_to_hub requires --do_train: an evaluation produces no model to upload")
    if training_args.process_index != 0:
        return
    name = training_args.hub_model_id or Path(training_args.output_dir).absolute().name
    if not (training_args.hub_token or get_token()):
        raise UsageError(
            f"--push_to_hub to {name}: access denied: there is no token; pass one with write access with --hub_token, "
            "in HF_TOKEN, or log in with `hf auth login`"
        )
    api = HfApi(token=training_args.hub_token)
    try:
        repository = api.create_repo(name, private=training_args.hub_private_repo, exist_ok=True)
        # The first request of an upload asks how to send each file. It requires write access but writes nothing.
        files = [CommitOperationAdd("README.md", b"-")]
        api.preupload_lfs_files(repository.repo_id, files, revision=training_args.hub_revision)
    except HFValidationError as error:
        raise UsageError(
            f"--hub_model_id {name}: names on the Hub consist of letters, digits, -, _ and .; choose another one"
        ) from error
    except Exception as error:  # of many types: token, access, network
        raise UsageError(f"--push_to_hub to {name}: {explain_hub_error(error, name, is_upload=True)}") from error
    training_args.hub_model_id = repository.repo_id
    if training_args.report_to and not Path(training_args.logging_dir).is_relative_to(training_args.output_dir):
        logger.warning(
            "hub: --logging_dir %s is outside --output_dir, so its TensorBoard logs are not uploaded",
            training_args.logging_dir,
        )
    logger.info("hub: uploading to %s (%s)", repository, training_args.hub_strategy.value)


class CheckpointUploads(TrainerCallback):
    """Uploads checkpoints in the background during training, according to `--hub_strategy`.

    - end: none.
    - every_save (default): the model of each checkpoint, and the TensorBoard logs so far.
    - checkpoint: also everything needed to resume, as the folder last-checkpoint.
    - all_checkpoints: the same, as the folders checkpoint-N.

    A checkpoint is skipped if the previous upload is still running, except with all_checkpoints or
    `--hub_always_push`. Each upload is a snapshot made of hard links, since the checkpoint may be deleted and the logs
    may grow in the meantime. A failed upload is a warning: the next one, or the final one, includes the same files.
    """

    def __init__(self):
        self.running: dict[Path, concurrent.futures.Future] = {}  # by snapshot folder
        self.skipped: Path | None = None  # the newest checkpoint, if it was skipped
        self.api: HfApi | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            left_by_killed_run = set(Path(args.output_dir).glob("checkpoint-upload-*")) - set(self.running)
            for snapshot in left_by_killed_run:
                shutil.rmtree(snapshot)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or args.hub_strategy == HubStrategy.END:
            return
        self._report_finished(args)
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        uploads_all = args.hub_always_push or args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
        if self.running and not uploads_all:
            self.skipped = checkpoint
        else:
            self._start(args, checkpoint)

    def finish(self, args: LMTrainingArguments) -> None:
        """Wait for all uploads to end."""
        concurrent.futures.wait(self.running.values())
        self._report_finished(args)
        if self.skipped is not None and args.hub_strategy == HubStrategy.CHECKPOINT:
            self._start(args, self.skipped)
            concurrent.futures.wait(self.running.values())
            self._report_finished(args)

    def _start(self, args: LMTrainingArguments, checkpoint: Path) -> None:
        self.skipped = None
        self.api = self.api or HfApi(token=args.hub_token)
        snapshot = take_snapshot(checkpoint, args.hub_strategy)
        self.running[snapshot] = self.api.run_as_future(upload_snapshot, self.api, args, snapshot, checkpoint.name)

    def _report_finished(self, args: LMTrainingArguments) -> None:
        for snapshot, upload in list(self.running.items()):
            if not upload.done():
                continue
            checkpoint = snapshot.name.replace("upload-", "")
            if upload.exception() is None:
                logger.info("hub: uploaded %s", checkpoint)
            else:
                reason = " ".join(explain_hub_error(upload.exception(), args.hub_model_id, is_upload=True).split())
                logger.warning("hub: the upload of %s failed, training continues: %s", checkpoint, reason)
            shutil.rmtree(snapshot)
            del self.running[snapshot]


def take_snapshot(checkpoint: Path, strategy: HubStrategy) -> Path:
    """Link the files to upload into a folder beside the checkpoint.

    Returns:
        The folder. It contains the folder `repository` with the model and the TensorBoard logs and, if the strategy
        includes it, the folder `checkpoint` with everything needed to resume.
    """
    snapshot = checkpoint.with_name(checkpoint.name.replace("checkpoint-", "checkpoint-upload-"))
    for path in checkpoint.rglob("*"):
        if not path.is_file():
            continue
        relative = path.relative_to(checkpoint)
        if not any(fnmatch.fnmatch(relative.parts[0], pattern) for pattern in RESUMPTION_FILES):
            _link(path, snapshot / "repository" / relative)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            _link(path, snapshot / "checkpoint" / relative)
    if (checkpoint.parent / "runs").is_dir():
        shutil.copytree(checkpoint.parent / "runs", snapshot / "repository" / "runs")
    return snapshot


def upload_snapshot(api: HfApi, args: LMTrainingArguments, snapshot: Path, name: str) -> None:
    """Upload the files of `take_snapshot`, in two commits so that the weights, which are in both, are sent once."""
    options = {"repo_id": args.hub_model_id, "revision": args.hub_revision}
    message = f"Training in progress, {name}"
    api.upload_folder(folder_path=snapshot / "repository", commit_message=message, **options)
    if (snapshot / "checkpoint").is_dir():
        target = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else name
        folder = snapshot / "checkpoint"
        api.upload_folder(folder_path=folder, path_in_repo=target, commit_message=f"{message}, to resume", **options)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def upload_results(training_args: LMTrainingArguments) -> None:
    """Upload the output folder, without its checkpoints.

    Raises:
        EarlyEnd: the upload failed. The message has the command that repeats it.
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
            ignore_patterns=[CHECKPOINT_FOLDERS],
        )
    except Exception as error:  # of many types: network, access, a file that the Hub rejects
        command = ["hf", "upload", name, str(folder), ".", *(["--revision", revision] if revision else [])]
        command = shlex.join([*command, "--exclude", CHECKPOINT_FOLDERS])
        reason = explain_hub_error(error, name, is_upload=True)
        raise EarlyEnd(
            f"error: --push_to_hub to {name}: the upload failed: {reason}. The results are complete in {folder}; to "
            f"upload them, with the token in HF_TOKEN or after `hf auth login`, run: {command}",
            exit_code=1,
        ) from error
    logger.info("hub: uploaded the results, %s", commit.commit_url)
