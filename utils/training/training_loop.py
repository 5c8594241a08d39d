"""The training loop: updates, what is due after them, and how a run stops and resumes."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers.debug_utils import DebugUnderflowOverflow
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from utils.compat import CompatTrainer
from utils.config.training_arguments import LMTrainingArguments
from utils.environment import temporary_environment
from utils.errors import EarlyEnd, UsageError
from utils.examples.stream_loader import StreamLoader
from utils.training.checkpoint_files import read_metadata
from utils.training.checkpointing import (
    keep_best_checkpoint,
    load_best_model,
    load_rng_state,
    update_best_metric,
    write_checkpoint,
)
from utils.training.dataloaders import TrainingLoader, no_worker_left_behind
from utils.training.divergence import DivergenceWatch
from utils.training.endings import stopped_early
from utils.training.evaluation import value_to_compare
from utils.training.out_of_memory import out_of_memory_explained, train_with_batches_that_fit
from utils.training.precision import weights_cast_once
from utils.training.preparation import add_embedding_noise, prepare_run, start_output, training_length
from utils.training.resumption import check_same_run, run_metadata
from utils.training.signals import StopRequested, StopRequests, reason_and_exit_code


class TrainingLoop(CompatTrainer):
    """A Trainer with its own training loop, whose runs stop at any time and resume exactly.

    - A checkpoint gets its name only when all of it is on disk. If it cannot be written, the run ends, and earlier
      checkpoints stay.
    - After SIGTERM, SIGINT or `--max_train_hours`, the update is finished and saved. All processes stop after the same
      update. A loss or gradients that are not finite end the run, unsaved.

    What is computed is up to the subclass: `get_train_dataloader`, `compute_loss`, `evaluate` and `save_model`. It
    also sets `counter`, a TrainingCounter, and `adapter`, the Adapter that alone is trained, or None.
    """

    def __init__(self, args: LMTrainingArguments, run_args: dict | None = None, **kwargs):
        super().__init__(args=args, **kwargs)
        self.run_args = run_args or {}
        self.stop_requests = StopRequests(args.max_train_hours)
        self.watch = DivergenceWatch(args, self.stop_requests)
        self.batch_size = args.train_batch_size  # of one process and accumulation step
        self.last_saved_step: int | None = None
        self.is_already_complete = False  # resumed from a checkpoint of its last step: nothing was trained
        self.is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.is_prepared = False  # wrapped for its hardware by `accelerate`
        self.best_state: TrainerState | None = None  # of the best checkpoint, once its weights are loaded
        self.order_seed = args.seed if args.data_seed is None else args.data_seed
        self._last_logged_step = 0
        self._given_optimizers = (self.optimizer, self.lr_scheduler)

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's, with the environment variables that `accelerate` reads set during this call."""
        with temporary_environment(**self.args.accelerate_environment):
            super().create_accelerator_and_postprocess()

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:
        """Train from the beginning or from a checkpoint.

        Raises:
            EarlyEnd: the run ended before its last update; the message says why.
            UsageError: the checkpoint is from a run with another corpus, batch size or seed.
        """
        args = self.args
        self.prepare_for_training()
        if "underflow_overflow" in args.debug:
            DebugUnderflowOverflow(self.model)
        noise = add_embedding_noise(self.model, args.neftune_noise_alpha) if args.neftune_noise_alpha else None
        checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        self.is_in_train = True
        with self.stop_requests, no_worker_left_behind(), out_of_memory_explained(args, is_training=True):
            try:
                if args.auto_find_batch_size:
                    return train_with_batches_that_fit(self._train, args, checkpoint)
                return self._train(args.train_batch_size, checkpoint)
            except StopRequested:  # in an evaluation before the first update
                raise self._stopped(self.stop_requests.agreed()) from None
            except EarlyEnd:  # on_train_end closes the logs
                self.control = self.callback_handler.on_train_end(args, self.state, self.control)
                raise
            finally:
                self.is_in_train = False
                if noise is not None:
                    noise.remove()

    def _train(self, batch_size: int, checkpoint: Path | None) -> TrainOutput:
        """Train with batches of `batch_size` examples per process and accumulation step."""
        args = self.args
        self.accelerator.free_memory()
        self.optimizer, self.lr_scheduler = self._given_optimizers
        self.batch_size = batch_size
        self.last_saved_step = None
        self.best_state = None
        self.counter.reset()
        if checkpoint is not None:
            check_same_run(checkpoint, run_metadata(self), self.model.config)
            self.train_dataset.load_state(checkpoint)
        dataloader = self.get_train_dataloader()
        updates_per_epoch, max_steps, num_epochs = training_length(args, len(dataloader))
        model = prepare_run(self, dataloader, max_steps, num_epochs, checkpoint)
        evaluation_is_due = checkpoint is not None and read_metadata(checkpoint).get("evaluation_is_due", False)
        self.is_already_complete = not start_output(self, max_steps, evaluation_is_due)
        if self.is_already_complete:
            return self._finish()
        self._last_logged_step = self.state.global_step
        model.zero_grad()
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        if evaluation_is_due:
            if self._evaluate_and_compare():
                self.state.best_model_checkpoint = str(checkpoint)
        elif args.eval_on_start:
            self.evaluate()

        first_epoch, first_update = divmod(self.state.global_step, updates_per_epoch)
        for epoch in range(first_epoch, num_epochs):
            if self.state.global_step >= max_steps or self.control.should_training_stop:
                break
            self._train_epoch(model, dataloader, epoch, first_update, checkpoint)
            first_update, checkpoint = 0, None
        return self._finish()

    def _train_epoch(
        self,
        model: nn.Module,
        dataloader: TrainingLoader | StreamLoader,
        epoch: int,
        first_update: int,
        checkpoint: Path | None,
    ) -> None:
        """One epoch, from `first_update` on, with the random generators of `checkpoint` if this resumes it."""
        accumulation, num_batches = self.args.gradient_accumulation_steps, len(dataloader)
        first_batch = first_update * accumulation
        dataloader.set_epoch(epoch, 0 if self.args.ignore_data_skip else first_batch)
        self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
        if checkpoint is not None:
            load_rng_state(checkpoint, self.args)
        batches = iter(dataloader)
        stop, grad_norm, learning_rate = 0, None, 0.0
        for start in range(first_batch, num_batches, accumulation):
            end = min(start + accumulation, num_batches)
            micro_batches = self.next_batches(batches, end - start)
            grad_norm, learning_rate = self.update(model, micro_batches, epoch + end / num_batches)
            stop = self.watch.end_update(self.state.global_step, grad_norm, learning_rate)
            self._log_evaluate_save(grad_norm, learning_rate)
            if stop and end < num_batches:  # after the last update of an epoch, what is due at its end comes first
                raise self._save_and_stop(stop)
            if self.control.should_epoch_stop or self.control.should_training_stop:
                break
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        self._log_evaluate_save(grad_norm, learning_rate)
        if stop:
            raise self._save_and_stop(stop)

    def next_batches(self, batches: Iterator, num_batches: int) -> list[dict[str, torch.Tensor]]:
        """The micro-batches of an update, on the device.

        Raises:
            EarlyEnd: the stream cannot be read any further; what was trained is saved.
        """
        device = self.args.device
        try:
            micro_batches = [next(batches) for _ in range(num_batches)]
        except UsageError as error:
            if self.state.global_step == 0:
                raise
            if self.args.world_size == 1 and self.last_saved_step != self.state.global_step:
                self.save_checkpoint()  # with several processes, the others do not know of the error
            raise stopped_early(self.args, self.last_saved_step, str(error), exit_code=1) from error
        # Moved before targets are counted, which would otherwise wait for the GPU.
        return [send_to_device(batch, device, non_blocking=device.type == "cuda") for batch in micro_batches]

    def update(
        self, model: nn.Module, micro_batches: list[dict[str, torch.Tensor]], epoch: float
    ) -> tuple[torch.Tensor | float | None, float]:
        """One update of the weights: forward and backward of each micro-batch, clipping, optimizer, scheduler.

        Args:
            epoch: the fraction of epochs after this update; a stream counts its epochs itself.

        Returns:
            The norm of the gradients before clipping, and the learning rate that was used.
        """
        args, accelerator, handler = self.args, self.accelerator, self.callback_handler
        num_targets = self.counter.count(micro_batches)
        self.control = handler.on_step_begin(args, self.state, self.control)
        with weights_cast_once(args):
            for number, batch in enumerate(micro_batches, start=1):
                is_last = number == len(micro_batches)
                accelerator.sync_gradients = is_last
                waits = not is_last and not self.is_deepspeed_enabled
                with accelerator.no_sync(model) if waits else contextlib.nullcontext():
                    loss = self.training_step(model, batch, num_targets)
                self.watch.add(loss)
                self.current_flos += float(self.floating_point_ops(batch))
                if not is_last:
                    self.control = handler.on_substep_end(args, self.state, self.control)

        grad_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
        if self.is_deepspeed_enabled:  # it clips in its own step
            grad_norm = model.get_global_grad_norm()
        self.control = handler.on_pre_optimizer_step(args, self.state, self.control)
        self.optimizer.step()
        self.control = handler.on_optimizer_step(args, self.state, self.control)
        learning_rate = self._learning_rate()
        is_plateau = isinstance(self.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if not accelerator.optimizer_step_was_skipped and not is_plateau:
            self.lr_scheduler.step()
        model.zero_grad()

        self.state.global_step += 1
        is_stream = self.train_dataset.num_examples is None
        self.state.epoch = float(self.train_dataset.epoch) if is_stream else epoch
        self.control = handler.on_step_end(args, self.state, self.control)
        return grad_norm, learning_rate

    # After an update

    def _log_evaluate_save(self, grad_norm: torch.Tensor | float | None, learning_rate: float) -> None:
        """Do what the callbacks have asked for."""
        if self.control.should_log and self.state.global_step > self._last_logged_step:
            self._last_logged_step = self.state.global_step
            self.store_flos()
            self.log(self.counter.log(grad_norm, learning_rate, self.state))
        try:
            if self.control.should_evaluate:
                is_best = self._evaluate_and_compare()
                if self.args.save_strategy == "best":
                    self.control.should_save = is_best
        except StopRequested:
            raise self._save_and_stop(self.stop_requests.agreed(), evaluation_is_due=True) from None
        if self.control.should_save:
            self.save_checkpoint()

    def _evaluate_and_compare(self) -> bool:
        """Evaluate, and find out whether this is the best model so far by `--metric_for_best_model`."""
        metrics, best = self.evaluate(), self.args.metric_for_best_model
        if isinstance(self.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.lr_scheduler.step(value_to_compare(metrics, best))
        if best is None:
            return False
        return update_best_metric(self.state, value_to_compare(metrics, best), self.args.greater_is_better)

    def save_checkpoint(self, evaluation_is_due: bool = False) -> None:
        """Write a checkpoint of this step.

        Args:
            evaluation_is_due: the run stops before the evaluation that is due here; the resumed run makes up for it.

        Raises:
            EarlyEnd: it could not be written, or the weights are not finite. Earlier checkpoints are unchanged.
        """
        self.counter.update()
        self.counter.pause()
        self.watch.check_weights(self.model, self.state.global_step, self._learning_rate())
        write_checkpoint(self, run_metadata(self) | {"evaluation_is_due": evaluation_is_due})
        self.last_saved_step = self.state.global_step
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _save_and_stop(self, request: int, evaluation_is_due: bool = False) -> EarlyEnd:
        if self.last_saved_step != self.state.global_step or evaluation_is_due:
            self.save_checkpoint(evaluation_is_due)
        return self._stopped(request)

    def _stopped(self, request: int) -> EarlyEnd:
        return stopped_early(self.args, self.last_saved_step, *reason_and_exit_code(request))

    def _finish(self) -> TrainOutput:
        """After the last update: the best model if asked for, the results, and the end of the logs."""
        args = self.args
        if args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self.best_state = load_best_model(self)
        self.watch.check_weights(self.model, self.state.global_step, self._learning_rate())
        self.store_flos()
        metrics = self.counter.summary(self.state)
        self.is_in_train = False
        if not self.is_already_complete:
            self.log(metrics)
        keep_best_checkpoint(self)
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)
