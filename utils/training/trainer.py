"""LMTrainer: what is computed in a run: exact losses, exact evaluation, exact throughput."""

import logging
import sys
import time

import torch
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import ModelOutput

from utils.compat import save_tokenizer
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.examples.base import Examples
from utils.examples.stream_loader import StreamLoader
from utils.hub.upload import CheckpointUploads, upload_results
from utils.models.adapter_saving import save_adapter
from utils.models.adapters import Adapter, GradientCheck
from utils.training.batch_sampler import EpochBatches
from utils.training.dataloaders import TrainingLoader, no_worker_left_behind
from utils.training.evaluation import check_best_metric, evaluation_metrics, score_dataset, without_prefix
from utils.training.fsdp import (
    gather_full_state_dict,
    prepare_for_evaluation,
    prepare_sharding,
    state_dict_replaced,
    weight_names,
)
from utils.training.log_callbacks import LogLines, ProgressBar
from utils.training.optimizers import lamb
from utils.training.out_of_memory import out_of_memory_explained
from utils.training.output_dir import write_run_args
from utils.training.preparation import check_model_flags, check_sharding_flags
from utils.training.signals import StopRequested
from utils.training.totals import TrainingCounter
from utils.training.training_loop import TrainingLoop
from utils.training.utilization import model_flops


logger = logging.getLogger(__name__)


class LMTrainer(TrainingLoop):
    """A Trainer whose numbers are exact; how its runs stop and resume is described in TrainingLoop.

    - The loss of an update is the sum over all its targets, of all processes and accumulation steps, divided by their
      number. So are the logged losses and `train_loss`: they are not means of means. If the model returns several
      losses, each is divided by the number of its own targets, and the loss of the update is their sum.
    - `evaluate` counts every example once, keeps no logits and sums in float64: the result does not depend on the
      batch size or the number of processes. It computes in the precision of the weights, not in mixed precision
      (`--bf16_full_eval` and `--fp16_full_eval` do that).
    - The order of examples is a function of seed and epoch; see EpochBatches.
    - Throughput is in tokens, without padding.
    - It saves safetensors and text files; run_args.yaml takes the place of the pickle training_args.bin.

    Args:
        model: prepared by `use_summed_loss`.
        args: LMTrainingArguments.
        adapter: from `add_adapter`: only the adapter is trained and saved; None to train and save the model.
        metric: a metric of `evaluate`, over predictions and references at the targets.
        losses: the name of each loss that the model returns, in order, with the key of its labels in a batch. With
            more than one, the names appear in the results. Default: one loss, whose labels are `labels`.
        target_name: what the results call the number of targets (of the first loss), after `eval_`. If it is not
            "tokens", not every token is a target, and `eval_tokens_per_second` counts all tokens that the model read.
        run_args: the flags that were given, from `parse_arguments`, for run_args.yaml.
        kwargs: as for transformers' Trainer. `train_dataset` and `eval_dataset` are Examples.
    """

    def __init__(
        self,
        model,
        args: LMTrainingArguments,
        adapter: Adapter | None = None,
        metric=None,
        losses: dict[str, str] | None = None,
        target_name: str = "tokens",
        **kwargs,
    ):
        check_model_flags(model, args)
        self.losses = losses or {"lm": "labels"}
        eval_dataset = kwargs.get("eval_dataset")
        set_names = list(eval_dataset) if isinstance(eval_dataset, dict) else []
        check_best_metric(args, list(self.losses), set_names, metric)
        super().__init__(model=model, args=args, **kwargs)
        prepare_sharding(self.accelerator, model)
        check_sharding_flags(self)
        self.adapter = adapter
        self.metric = metric
        self.target_name = target_name
        self.model_accepts_loss_kwargs = True  # the loss is divided by the number of targets, in compute_loss
        self.counter = TrainingCounter(self.losses, self.accelerator)
        self.counter.flops = model_flops(model, self.train_dataset.block_size, args) if args.do_train else None
        self.checkpoint_uploads = CheckpointUploads()
        self._weight_names = weight_names(model)
        self._evaluations: dict[int, dict[str, float]] = {}  # of the training, by step
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(self.counter.totals)
        self.add_callback(LogLines if args.disable_tqdm or not sys.stderr.isatty() else ProgressBar)
        if adapter is not None:
            self.add_callback(GradientCheck)
        if args.push_to_hub:
            self.add_callback(self.checkpoint_uploads)

    # Batches and losses

    def get_train_dataloader(self) -> TrainingLoader | StreamLoader:
        """This process's share of the examples, in an order that seed and epoch determine."""
        dataset, args = self.train_dataset, self.args
        pin_memory = args.dataloader_pin_memory and args.device.type == "cuda"
        if dataset.num_examples is None:
            num_batches = args.max_steps * args.gradient_accumulation_steps
            return StreamLoader(dataset, self.batch_size, self.data_collator, num_batches, pin_memory)
        if args.group_by_length and dataset.lengths is None:
            raise UsageError("--group_by_length: the lengths of these examples are not known; leave it out")
        batches = EpochBatches(
            dataset.num_examples,
            self.batch_size,
            args.gradient_accumulation_steps,
            args.world_size,
            args.process_index,
            self.order_seed,
            dataset.lengths if args.group_by_length else None,
            args.dataloader_drop_last,
        )
        if not len(batches):
            raise UsageError(
                f"--dataloader_drop_last leaves nothing of {dataset.num_examples:,} examples: an update takes "
                f"{batches.global_batch_size:,}"
            )
        return TrainingLoader(
            dataset,
            batches,
            self.data_collator,
            list(self.losses.values()),
            num_workers=args.dataloader_num_workers,
            pin_memory=pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            fixed_size=self.batch_size if args.torch_compile else None,
        )

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: LMTrainingArguments, model=None) -> tuple[type, dict]:
        """As Trainer's, and LAMB for `--optim lamb`."""
        return lamb(args) if args.optim == "lamb" else TrainingLoop.get_optimizer_cls_and_kwargs(args, model)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The summed loss of this micro-batch, divided by the number of targets of the whole update.

        If the model returns several losses, each is divided by the number of its own targets, and they are added up.
        Gradients are averaged over the processes, hence the factor. The mean loss that balances experts is added.
        """
        outputs = model(**inputs)
        if isinstance(outputs, ModelOutput):
            raise ValueError("LMTrainer needs a model that returns summed losses: call use_summed_loss(model, ...)")
        self.counter.add_losses(outputs["loss"], outputs.get("aux_loss"))
        scale = self.accelerator.num_processes / num_items_in_batch.clamp(min=1)
        loss = (outputs["loss"] * scale).sum() + outputs.get("aux_loss", 0.0) * scale[0]
        return (loss, outputs) if return_outputs else loss

    # Evaluation

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Examples | dict[str, Examples] | str | None = None,
        ignore_keys=None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate exactly; or, after a training that has evaluated its final weights, return these figures.

        Args:
            eval_dataset: examples, several sets of them by name, or the name of one of the sets that the trainer has.
                Default: all that the trainer has.
            metric_key_prefix: of all metrics. Those of a named set begin with, for example, `eval_books_`.

        Returns:
            `eval_loss`: nats per target, sum over count in float64; `eval_perplexity`, its exponential;
            `eval_bits_per_byte` and `eval_bytes`, if the dataset has `target_bytes`; `eval_accuracy`, the share of
            targets that the model ranks first; `eval_samples`; `eval_tokens`, or `eval_` and `target_name`, the number
            of targets; `eval_runtime` in seconds; `eval_tokens_per_second`; and what `metric` computes. With several
            losses, `eval_loss` is the sum of `eval_NAME_loss`, `eval_perplexity` the exponential of the first, and
            there is an `eval_NAME_accuracy` for each instead of `eval_accuracy`. With the prefix "eval", perplexity,
            bits per byte and the named losses are also there without it. `best_step` is the step whose weights were
            evaluated, if `--load_best_model_at_end` loaded them; `epoch` is that of the last step.
        """
        self.counter.pause()
        step = self.state.global_step if self.best_state is None else self.best_state.global_step
        is_of_all = eval_dataset is None and metric_key_prefix == "eval"
        if is_of_all and not self.is_in_train and step in self._evaluations:  # once: the model may change after that
            logger.info("evaluation: the figures are those of step %s, evaluated during the training", f"{step:,}")
            metrics, self._evaluations = self._evaluations[step], {}
            return metrics | self._position()
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = {dataset: self.eval_dataset[dataset]}
        sets = {"": dataset} if not isinstance(dataset, dict) else {f"_{name}": part for name, part in dataset.items()}
        metrics = {}
        for name, examples in sets.items():
            metrics |= self._evaluate_set(examples, metric_key_prefix + name)
        if metric_key_prefix == "eval":
            metrics |= without_prefix(metrics, list(self.losses))
        metrics |= self._position()
        if is_of_all and self.is_in_train:
            self._evaluations[step] = dict(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _position(self) -> dict[str, float]:
        """The step of the best weights, if they are evaluated, and the epoch of the last step."""
        position = {} if self.best_state is None else {"best_step": self.best_state.global_step}
        return position if self.state.epoch is None else position | {"epoch": self.state.epoch}

    def _evaluate_set(self, dataset: Examples, prefix: str) -> dict[str, float]:
        """Evaluate on one set of examples, and log its metrics."""
        model, start = self.model_to_evaluate(), time.monotonic()
        with no_worker_left_behind(), out_of_memory_explained(self.args, is_training=False):
            sums = score_dataset(
                model,
                dataset,
                self.data_collator,
                self.args,
                self.accelerator,
                num_losses=len(self.losses),
                metric=self.metric,
                after_batch=self._leave_if_asked_to_stop,
            )
        runtime = time.monotonic() - start
        metrics = evaluation_metrics(sums, list(self.losses), dataset.target_bytes, prefix)
        metrics |= {f"{prefix}_{self.metric.name}_{name}": value for name, value in sums.metric.items()}
        metrics[f"{prefix}_samples"] = len(dataset)
        metrics[f"{prefix}_{self.target_name}"] = sums.num_targets[0]
        metrics[f"{prefix}_runtime"] = round(runtime, 3)
        num_tokens = sums.num_targets[0] if self.target_name == "tokens" else sums.num_tokens
        metrics[f"{prefix}_tokens_per_second"] = round(num_tokens / runtime, 1)
        self._log_evaluation(metrics)
        return metrics

    def _log_evaluation(self, metrics: dict[str, float]) -> None:
        """Log the metrics under the step whose weights were evaluated."""
        last = self.state.global_step, self.state.epoch
        if self.best_state is not None:
            self.state.global_step, self.state.epoch = self.best_state.global_step, self.best_state.epoch
        self.log(dict(metrics))  # a copy: `log` adds the epoch
        self.state.global_step, self.state.epoch = last

    def model_to_evaluate(self) -> torch.nn.Module:
        """The model on its device, in its wrapper if it is sharded."""
        if not self.is_sharded:
            return self.model.to(self.args.device)
        if self.is_prepared:
            return self.model_wrapped
        return prepare_for_evaluation(self.accelerator, self.model)

    def _leave_if_asked_to_stop(self) -> None:
        if self.is_in_train and self.stop_requests.agreed():
            raise StopRequested

    # Results

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model or adapter, the tokenizer and run_args.yaml; of a sharded model, the full weights.

        Unlike Trainer's, it does not upload: with `--push_to_hub` that follows the evaluation.
        """
        folder = output_dir or self.args.output_dir
        weights = None
        if self.is_sharded:
            weights = gather_full_state_dict(self.accelerator, self.model_wrapped, self._weight_names)
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            if self.adapter is None:
                model.save_pretrained(folder, state_dict=weights)
            else:
                with state_dict_replaced(model, weights):
                    save_adapter(model, self.adapter, folder)
            save_tokenizer(self.processing_class, folder)
            if not self.is_already_complete:
                write_run_args(folder, self.run_args)
        if self.is_sharded:
            self.accelerator.wait_for_everyone()

    def init_hf_repo(self, *args, **kwargs) -> None:
        """`prepare_upload` has created the repository."""

    def push_to_hub(self, *args, **kwargs) -> None:
        """Upload the output folder as it is, after the checkpoints that are being uploaded.

        Trainer's own way would upload training_args.bin, a pickle with the token in it, and a model card of its own.

        Raises:
            EarlyEnd: the upload failed; the message says how to repeat it.
        """
        if self.is_world_process_zero():
            self.checkpoint_uploads.finish(self.args)
            upload_results(self.args)
