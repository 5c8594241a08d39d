"""ResumableTrainer: transformers' Trainer whose runs can end at any time and go on as if they had not."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers.trainer_callback import ExportableState, TrainerCallback

from utils.compat import CompatTrainer
from utils.config.training_arguments import LMTrainingArguments
from utils.environment import temporary_environment
from utils.errors import EarlyEnd, UsageError
from utils.training.batch_sampler import EpochBatches, TrainingLoader
from utils.training.checkpoint_files import (
    describe_write_error,
    find_corruption,
    publish,
    read_metadata,
    remove,
    remove_leftovers,
    sync,
    unfinished,
)
from utils.training.divergence import DivergenceWatch, are_finite
from utils.training.output_dir import clear_output_dir, list_checkpoints, write_run_args
from utils.training.signals import EvaluationCut, Interruption, reason_and_exit_code


logger = logging.getLogger(__name__)

DIVERGED = 1000  # beside the numbers of signals
BAD_UPDATES = 3
# The first scales of float16 overflow the gradients on purpose: such updates are skipped, and the scale is halved.
BAD_UPDATES_FP16 = 25


class DueEvaluation(TrainerCallback):
    """Makes up for an evaluation that was cut short where the run ended."""

    def __init__(self, trainer: "ResumableTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.make_up_for_evaluation()


class ResumableTrainer(CompatTrainer):
    """A Trainer that ends in good order, and resumes exactly.

    - The order of examples is a function of seed and epoch; see EpochBatches.
    - A checkpoint has its name only when all of it is on the disk. If it cannot be written, the run ends, and the
      checkpoints before it stay.
    - After SIGTERM, SIGINT or `--max_train_hours`, the step is finished and saved. All processes end at the same step.
    - Losses or gradients that are not finite end the run, unsaved.

    Args:
        label_names: the keys of a batch that hold targets.
        kwargs: as for transformers' Trainer.
    """

    args: LMTrainingArguments

    def __init__(self, label_names: list[str], run_args: dict, **kwargs):
        super().__init__(**kwargs)
        self.run_args = run_args
        self._labels = label_names
        self.interruption = Interruption(self.args.max_train_hours)
        self._watch = DivergenceWatch(self.args.device)
        self._resumed_from: str | None = None
        self._evaluation_is_due = False
        self.add_callback(DueEvaluation(self))

    def create_accelerator_and_postprocess(self) -> None:
        with temporary_environment(**self.args.accelerate_environment):
            super().create_accelerator_and_postprocess()

    # Training

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """As Trainer.train; with `--overwrite_output_dir`, what an earlier run left in the folder is removed first.

        Raises:
            EarlyEnd: the run has ended before its last step, for a reason that the message tells.
            UsageError: the checkpoint is of another corpus, batch size or seed.
        """
        self.accelerator.wait_for_everyone()  # until every process has looked at the folder
        if self.is_world_process_zero():
            if self.args.overwrite_output_dir:
                clear_output_dir(self.args.output_dir)
            remove_leftovers(self.args.output_dir)
            write_run_args(self.args.output_dir, self.run_args)
        self.accelerator.wait_for_everyone()
        self._resumed_from = resume_from_checkpoint
        self._last_step = self._last_saved_step = None
        self._ending = 0
        with self.interruption:
            try:
                output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
                self._end_if_weights_diverged()
            except EvaluationCut:  # one before the first step: there is nothing to save
                raise self._end(self.interruption.all_reduce(self.interruption.requested())) from None
            except EarlyEnd:
                self.callback_handler.on_train_end(self.args, self.state, self.control)  # logs are closed
                raise
        return output

    def _inner_training_loop(self, batch_size=None, args=None, resume_from_checkpoint=None, **kwargs):
        if not self.args.auto_find_batch_size:
            batch_size = self.args.train_batch_size  # Trainer would take the checkpoint's, for any number of processes
        self._train_batch_size = batch_size
        if resume_from_checkpoint is not None:
            self._check_that_it_fits(resume_from_checkpoint)
        return super()._inner_training_loop(batch_size, args, resume_from_checkpoint, **kwargs)

    def _facts(self) -> dict:
        """What decides which examples are left, and so has to be the same when a run goes on."""
        size = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        facts = {"global_batch_size": size, "seed": self._order_seed()}
        if hasattr(self.train_dataset, "__len__"):
            facts["examples"] = len(self.train_dataset)
        return facts

    def _order_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _check_that_it_fits(self, checkpoint: str) -> None:
        saved = read_metadata(checkpoint)
        for name, value in self._facts().items():
            if saved.get(name, value) != value:
                raise UsageError(
                    f"{checkpoint} is of a run with {name.replace('_', ' ')} {saved[name]}, this one has {value}: it "
                    "would not go on with the examples that are left; give the same text and flags, or start from "
                    f"its weights with --model_name_or_path {checkpoint} and another --output_dir"
                )

    def get_train_dataloader(self) -> DataLoader:
        """This process's share of the examples, in an order that seed and epoch decide."""
        dataset, args = self.train_dataset, self.args
        lengths = None
        if args.group_by_length:
            if not hasattr(dataset, "lengths"):
                raise UsageError("--group_by_length: this data set does not know its lengths; leave it out")
            lengths = dataset.lengths
        batches = EpochBatches(
            len(dataset),
            self._train_batch_size,
            args.gradient_accumulation_steps,
            args.world_size,
            args.process_index,
            self._order_seed(),
            lengths,
            args.dataloader_drop_last,
        )
        if not len(batches):
            raise UsageError(
                f"--dataloader_drop_last leaves nothing of {len(dataset):,} examples: an update takes "
                f"{batches.global_batch_size:,}"
            )
        return TrainingLoader(
            dataset,
            batches,
            self.data_collator,
            self._labels,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """As Trainer's, but nothing after the last step: Trainer resumes a run that is complete with one step more.

        Raises:
            EarlyEnd: a stream cannot be read any further.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None
        # Moved before targets are counted, which otherwise waits for the GPU. Nothing is drawn beyond `num_batches`.
        batches = (send_to_device(batch, device, non_blocking=device.type == "cuda") for batch in epoch_iterator)
        try:
            return super().get_batch_samples(batches, num_batches, device)
        except UsageError as error:
            raise self._end_of_stream(error) from error

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._watch.add(loss)
        return loss

    # Ends

    def _maybe_log_save_evaluate(
        self, tr_loss, grad_norm, model, trial, *args, learning_rate: float | None = None, **kwargs
    ) -> None:
        """As Trainer's, which calls this after each update and once more after an epoch; and then end, if asked for.

        After the last update of an epoch, what is due at the end of the epoch comes first.
        """
        is_after_update = self.state.global_step != self._last_step
        if is_after_update:
            self._last_step = self.state.global_step
            self._ending = self._agree_on_the_end(grad_norm, learning_rate)
        ends_now = self._ending and not (is_after_update and self._is_last_of_epoch())
        try:
            super()._maybe_log_save_evaluate(
                tr_loss, grad_norm, model, trial, *args, learning_rate=learning_rate, **kwargs
            )
        except EvaluationCut:
            self._ending = ends_now = self.interruption.all_reduce(self.interruption.requested())
            self._evaluation_is_due = True
        if not ends_now:
            return
        if self._last_saved_step != self.state.global_step or self._evaluation_is_due:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        raise self._end(self._ending)

    def _is_last_of_epoch(self) -> bool:
        steps = len(self.callback_handler.train_dataloader)
        return self.state.global_step % -(-steps // self.args.gradient_accumulation_steps) == 0

    def _end(self, ending: int) -> EarlyEnd:
        return self._early_end(*reason_and_exit_code(ending))

    def _end_of_stream(self, error: UsageError) -> Exception:
        """What ends a run whose text has gone or cannot be reached any more: what was trained before is saved."""
        if not self.state.global_step:
            return error
        if self.args.world_size == 1 and self._last_saved_step != self.state.global_step:  # others do not know of it
            self._save_checkpoint(self.model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return self._early_end(str(error), 1)

    def _early_end(self, reason: str, exit_code: int) -> EarlyEnd:
        flags = ["--overwrite_output_dir", "false"] if self.args.overwrite_output_dir else []
        if self.args.resume_from_checkpoint and self._last_good_checkpoint() is not None:
            flags += ["--resume_from_checkpoint", "true"]
        saved = f"step {self._last_saved_step:,} is saved" if self._last_saved_step else "nothing new to save"
        return EarlyEnd(f"{reason}; {saved} in {self.args.output_dir}", exit_code, flags)

    def _agree_on_the_end(self, grad_norm: torch.Tensor | float | None, learning_rate: float | None) -> int:
        """What all processes found after an update, in one exchange: why the run is to end, or 0."""
        if grad_norm is not None:
            self._watch.add(grad_norm)
        limit = BAD_UPDATES_FP16 if self.args.fp16 else BAD_UPDATES
        is_diverged = self._watch.end_update() >= limit
        ending = self.interruption.all_reduce(DIVERGED if is_diverged else self.interruption.requested())
        if ending == DIVERGED:
            what = f"loss or gradients are NaN or infinite, {limit} updates in a row"
            raise self._divergence(what, learning_rate)
        return ending

    def _end_if_weights_diverged(self) -> None:
        if self.interruption.all_reduce(int(not are_finite(self.model.parameters()))):
            raise self._divergence("weights are NaN or infinite", self._get_learning_rate())

    def _divergence(self, what: str, learning_rate: float | None) -> EarlyEnd:
        checkpoint = self._last_good_checkpoint()
        return EarlyEnd(
            f"step {self.state.global_step:,}: the training has diverged: {what}, learning rate {learning_rate:.3g}; "
            f"{f'the last good checkpoint is {checkpoint}' if checkpoint else 'there is no checkpoint yet'}; "
            "try a lower --learning_rate, more --warmup_steps or a lower --max_grad_norm",
            1,
        )

    def _last_good_checkpoint(self) -> Path | None:
        checkpoints = reversed(list_checkpoints(self.args.output_dir))
        return next((path for path in checkpoints if find_corruption(path, read_all=False) is None), None)

    # Evaluation

    def cut_evaluation_if_asked(self) -> None:
        """Leave an evaluation during the training, if the run is to end. All processes call this together."""
        if self.is_in_train and self.interruption.all_reduce(self.interruption.requested()):
            raise EvaluationCut

    def make_up_for_evaluation(self) -> None:
        """If the evaluation where the run ended was cut short, do it now; the checkpoint there may be the best."""
        if self._resumed_from is None or not read_metadata(self._resumed_from).get("evaluation_is_due"):
            return
        metrics = self._evaluate(None, None)
        if self._determine_best_metric(metrics, None):
            self.state.best_model_checkpoint = self._resumed_from

    # Checkpoints

    def compare_trainer_and_checkpoint_args(self, training_args, trainer_state) -> None:
        """Trainer would warn of a share of the steps that is not the number of steps; see `_check_that_it_fits`."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As Trainer's, which fails to map the file to the device "cpu:0" of several processes without a GPU."""
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        for name, target in (("optimizer.pt", self.optimizer), ("scheduler.pt", self.lr_scheduler)):
            path = Path(checkpoint) / name
            if not path.is_file():
                logger.warning("%s is not there (--save_only_model?): it starts anew, unlike the run before", path)
            else:
                # Not read as a whole where it is copied to a GPU: each process of a machine maps the same pages.
                is_copied = self.args.device.type != "cpu"
                target.load_state_dict(torch.load(path, map_location="cpu", weights_only=True, mmap=is_copied))

    def _save_checkpoint(self, model, trial) -> None:
        """Write a checkpoint: every process its part, and when all are on the disk, it gets its name.

        Raises:
            EarlyEnd: it could not be written, or the weights are not finite. Earlier checkpoints are as they were.
        """
        self._end_if_weights_diverged()
        self.store_flos()
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        best = checkpoint.with_name(f"checkpoint-{self.state.best_global_step}")
        if self.state.best_global_step and (best == checkpoint or best.exists()):
            self.state.best_model_checkpoint = str(best)
        facts = self._facts() | {"evaluation_is_due": self._evaluation_is_due}
        self._on_all(lambda: self._write_parts(unfinished(checkpoint)), checkpoint)
        self._on_all(lambda: sync(unfinished(checkpoint)), checkpoint)  # by all machines, when all have written
        self._on_all(lambda: publish(checkpoint, facts) if self.args.should_save else None, checkpoint)
        self._last_saved_step = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            self._rotate_checkpoints(output_dir=self.args.output_dir)

    def _on_all(self, write: Callable[[], None], checkpoint: Path) -> None:
        """Do it in all processes, and wait for all; if one fails, nothing of the checkpoint stays."""
        error = None
        try:
            write()
        except Exception as raised:
            error = raised
        if not self.interruption.all_reduce(int(error is not None)):
            return
        if self.args.should_save:
            remove_leftovers(self.args.output_dir)
        reason = "another process could not write" if error is None else describe_write_error(error)
        if reason is None:
            raise error
        good = self._last_good_checkpoint()
        raise EarlyEnd(
            f"{checkpoint} could not be saved: {reason}; "
            f"{f'{good} is as it was' if good else 'there is no earlier one'}; make room and start again",
            1,
        ) from error

    def _write_parts(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if hasattr(self.train_dataset, "save_state"):
            self.train_dataset.save_state(str(folder))
        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(os.path.join(folder, "trainer_state.json"))

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:
        """Keep `save_total_limit` checkpoints. Called when the new one is whole."""
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        checkpoints = self._sorted_checkpoints(output_dir)
        best = self.state.best_model_checkpoint
        if limit == 1 and best is not None and checkpoints[-1] != best:
            limit = 2  # the best, and one to go on from
        for checkpoint in checkpoints[:-limit]:
            remove(Path(checkpoint))

    def _sorted_checkpoints(self, output_dir=None, checkpoint_prefix="checkpoint", use_mtime=False) -> list[str]:
        """What `save_total_limit` may delete, in this order: only what we wrote; damaged ones, then the oldest.

        The best one is last but one.
        """
        checkpoints = sorted(
            list_checkpoints(output_dir), key=lambda path: find_corruption(path, read_all=False) is None
        )
        checkpoints = [str(path) for path in checkpoints]
        best = self.state.best_model_checkpoint
        if best in checkpoints[:-1]:
            checkpoints.remove(best)
            checkpoints.insert(len(checkpoints) - 1, best)
        return checkpoints
