"""LMTrainer: transformers' Trainer with exact sums for its loss, its evaluation and its throughput."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_callback import (
    ExportableState,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)

from utils.compat import save_tokenizer
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.examples.streaming import BlockStream, StreamLoader
from utils.hub.errors import explain_hub_error
from utils.hub.upload import CheckpointUploads, upload_results
from utils.models.adapter_saving import load_saved_adapter, save_adapter
from utils.models.adapters import Adapter, GradientCheck
from utils.progress import progress
from utils.training.batch_sampler import EmptyBatch
from utils.training.fsdp import gather_full_state_dict, prepare_alone, prepare_sharding, weight_names, with_weights
from utils.training.log_callbacks import LogLines, ProgressBar
from utils.training.output_dir import write_run_args
from utils.training.resumable_trainer import ResumableTrainer
from utils.training.signals import leave_signals_to_the_main_process


logger = logging.getLogger(__name__)

# Flags of TrainingArguments that are about logits kept in evaluation, or about what is counted here anyway.
IGNORED_FLAGS = (
    "batch_eval_metrics", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
    "include_for_metrics", "include_inputs_for_metrics", "include_num_input_tokens_seen",
    "include_tokens_per_second", "jit_mode_eval", "label_names", "prediction_loss_only", "remove_unused_columns",
    "use_legacy_prediction_loop", "do_predict", "past_index",
)  # fmt: skip
SUMS = ("loss", "num_correct", "num_targets")


class TrainingTotals(TrainerCallback, ExportableState):
    """Exact sums over the whole training, over all processes and over the sessions of a resumed run.

    Saved in each checkpoint's trainer_state.json.
    """

    def __init__(self, nll: Sequence[float] = (), targets: Sequence[int] = (), tokens: int = 0, seconds: float = 0.0):
        self.nll = list(nll)  # of each loss: nats, summed over its targets
        self.targets = list(targets)
        self.tokens = tokens  # read by the model, padding not counted
        self.seconds = seconds  # spent training; evaluation and saving not counted

    def means(self, since: "TrainingTotals") -> list[float]:
        """Each loss in nats per target, over what was added since `since`."""
        sums = zip(self.nll, since.nll, self.targets, since.targets, strict=True)
        return [(nll - old_nll) / max(targets - old_targets, 1) for nll, old_nll, targets, old_targets in sums]

    def state(self) -> dict:
        return {"args": vars(self).copy(), "attributes": {}}


class StreamEpochs(TrainerCallback):
    """Counts epochs by the passes that this process has finished over its part of the stream."""

    def on_step_end(self, args, state, control, train_dataloader, **kwargs):
        state.epoch = float(train_dataloader.dataset.epoch)


class LMTrainer(ResumableTrainer):
    """A Trainer whose numbers are exact, and whose runs resume exactly.

    - The loss of an update is the sum over all its targets, of all processes and accumulation steps, divided by their
      number. So are the logged losses and `train_loss`, which are not means of means. Of several losses, each is
      divided by the number of its own targets, and the loss of the update is their sum.
    - `evaluate` counts every example once, keeps no logits and sums in float64: the result does not depend on the
      batch size or the number of processes. It computes in the precision of the weights, not in mixed precision
      (`--bf16_full_eval` and `--fp16_full_eval` do that).
    - Throughput is in tokens, padding not counted.
    - What it saves is safetensors and text; instead of the pickle training_args.bin, run_args.yaml.

    Args:
        model: prepared by `use_summed_loss`.
        args: LMTrainingArguments.
        eval_dataset: a map-style data set. If it has `target_bytes`, bits per byte are reported.
        adapter: what alone is trained and saved, from `add_adapter`; None to train and save the model.
        metric: a metric of `evaluate` over predictions and references at the targets.
        losses: the names of the model's losses, in their order, with the name of the labels of each in a batch. The
            names of several appear in the results. Default: one loss, whose labels are `labels`.
        target_name: what the results call the number of targets (of the first loss), after `eval_`. If it is not
            "tokens", the targets are not all tokens, and `eval_tokens_per_second` is about those that the model read.
        run_args: the flags that were given, from `parse_arguments`, for run_args.yaml and for warnings.
        kwargs: as for transformers' Trainer.
    """

    def __init__(
        self,
        model,
        args: LMTrainingArguments,
        adapter: Adapter | None = None,
        metric=None,
        target_name: str = "tokens",
        losses: dict[str, str] | None = None,
        run_args: dict | None = None,
        **kwargs,
    ):
        if args.do_train and model.dtype == torch.float16:
            raise UsageError("--dtype float16 cannot hold the updates of a training: use --fp16, or --dtype bfloat16")
        if args.gradient_checkpointing and not model.supports_gradient_checkpointing:
            raise UsageError(f"--gradient_checkpointing: {type(model).__name__} cannot do it; leave it out")
        self.losses = losses or {"lm": "labels"}
        super().__init__(
            label_names=list(self.losses.values()), run_args=run_args or {}, model=model, args=args, **kwargs
        )
        prepare_sharding(self.accelerator, model)
        self._weight_names = weight_names(model)
        for flag in IGNORED_FLAGS:
            if flag in self.run_args:
                logger.warning("--%s has no effect in this suite", flag)
        if "num_train_epochs" in self.run_args and isinstance(self.train_dataset, BlockStream):
            logger.warning("--num_train_epochs has no effect with --streaming: --max_steps says how long to train")
        self.adapter = adapter
        if adapter is not None:
            self.add_callback(GradientCheck)
        self.metric = metric
        self.target_name = target_name
        self.model_accepts_loss_kwargs = True  # the loss is divided by the number of items, not by accumulation steps
        self.totals = self._no_totals()
        self.add_callback(self.totals)
        self.checkpoint_uploads = CheckpointUploads()
        if args.push_to_hub:
            self.add_callback(self.checkpoint_uploads)
        if isinstance(self.train_dataset, BlockStream):
            args.ignore_data_skip = True  # the stream knows where to go on
            self.add_callback(StreamEpochs)
        # nll and targets of each loss, and tokens, of this process that are not yet in the totals
        dtype = torch.float32 if args.device.type == "mps" else torch.float64
        self._tally = torch.zeros(2 * len(self.losses) + 1, dtype=dtype, device=args.device)
        self._clock: float | None = None  # since when training goes on uncounted; None while it does not
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(LogLines if args.disable_tqdm or not sys.stderr.isatty() else ProgressBar)

    # Training

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        if isinstance(self.train_dataset, BlockStream) and resume_from_checkpoint is not None:
            self.train_dataset.load_state(resume_from_checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _inner_training_loop(self, *args, **kwargs):
        vars(self.totals).update(vars(self._no_totals()))  # also when auto_find_batch_size starts again
        self._tally.zero_()
        self._clock = None
        self._at_last_log = self._no_totals()
        return super()._inner_training_loop(*args, **kwargs)

    def _no_totals(self) -> TrainingTotals:
        return TrainingTotals([0.0] * len(self.losses), [0] * len(self.losses))

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: LMTrainingArguments, model=None) -> tuple[type, dict]:
        """As Trainer's, and LAMB for `--optim lamb`."""
        if args.optim != "lamb":
            return ResumableTrainer.get_optimizer_cls_and_kwargs(args, model)
        from pytorch_optimizer import Lamb  # here, since it takes a second and few runs need it

        # As in the paper (You et al. 2020, algorithm 2): weight decay is part of the update whose norm is compared
        # with the weights'. `adam_debias` keeps the learning rate as it is in the first steps, where this library
        # would multiply it by up to 10.
        betas = (args.adam_beta1, args.adam_beta2)
        options = {"betas": betas, "eps": args.adam_epsilon, "weight_decouple": False, "adam_debias": True}
        return Lamb, {"lr": args.learning_rate} | options

    def get_train_dataloader(self):
        """As ResumableTrainer's; of a stream, in whose part of this process nobody else has a share, its own."""
        if not isinstance(self.train_dataset, BlockStream):
            return super().get_train_dataloader()
        return StreamLoader(
            self.train_dataset,
            self._train_batch_size,
            self.data_collator,
            num_batches=self.args.max_steps * self.args.gradient_accumulation_steps,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The batches of an update, and the number of their targets over all processes, int64 of shape (losses,)."""
        if self._clock is None:
            self._clock = time.monotonic()
        batches, num_targets = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            for loss, labels in enumerate(self.losses.values()):
                self._tally[len(self.losses) + loss] += batch[labels].ne(-100).sum()
            self._tally[-1] += _num_tokens(batch)
        return batches, num_targets

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        counts = [sum(batch[labels].ne(-100).sum() for batch in batch_samples) for labels in self.losses.values()]
        return self.accelerator.reduce(torch.stack(counts).to(device), "sum")

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The summed loss of this micro-batch over the number of targets of the whole update; of several, their sum.

        Times the number of processes, over which gradients are averaged: what is left is the gradient of the mean.
        """
        outputs = model(**inputs)
        self._tally[: len(self.losses)] += outputs["loss"].detach()
        loss = (outputs["loss"] * (self.accelerator.num_processes / num_items_in_batch.clamp(min=1))).sum()
        return (loss, outputs) if return_outputs else loss

    def _update_totals(self) -> None:
        """Add what all processes counted since the last call. All processes call this together."""
        *sums, tokens = self.accelerator.reduce(self._tally, "sum").tolist()
        self._tally = torch.zeros_like(self._tally)
        for loss in range(len(self.losses)):
            self.totals.nll[loss] += sums[loss]
            self.totals.targets[loss] += round(sums[len(self.losses) + loss])
        self.totals.tokens += round(tokens)
        if self._clock is not None:
            now = time.monotonic()
            self.totals.seconds += now - self._clock
            self._clock = now

    def _pause_clock(self) -> None:
        """Stop counting the time as training time, until the next batch."""
        if self._clock is not None:
            self.totals.seconds += time.monotonic() - self._clock
            self._clock = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put the exact figures in the place of Trainer's means of means, then log."""
        if "loss" in logs:
            self._update_totals()
            since = self._at_last_log
            seconds = self.totals.seconds - since.seconds
            steps_left = self.state.max_steps - self.state.global_step
            means = self.totals.means(since)
            logs["loss"] = sum(means)
            logs |= self._by_name("train_{}_loss", means)
            logs["tokens_per_second"] = round((self.totals.tokens - since.tokens) / seconds, 1)
            logs["eta_seconds"] = round(self.totals.seconds / self.state.global_step * steps_left, 1)
            self._at_last_log = TrainingTotals(**vars(self.totals))
        elif "train_runtime" in logs:  # the summary that train() returns
            self._update_totals()
            epoch = self.state.epoch
            means = self.totals.means(self._no_totals())
            logs.clear()
            logs["train_loss"] = sum(means)
            logs |= self._by_name("train_{}_loss", means)
            if not isinstance(self.train_dataset, BlockStream):
                logs["train_samples"] = len(self.train_dataset)
            logs["train_tokens"] = self.totals.tokens
            logs["train_runtime"] = round(self.totals.seconds, 3)
            logs["train_tokens_per_second"] = round(self.totals.tokens / max(self.totals.seconds, 1e-9), 1)
            logs["epoch"] = epoch
        super().log(logs)

    def _by_name(self, pattern: str, values: list[float]) -> dict[str, float]:
        """The values of several losses by their names; of one, nothing, since its value is the whole."""
        if len(self.losses) == 1:
            return {}
        return {pattern.format(name): value for name, value in zip(self.losses, values, strict=True)}

    # Evaluation

    @torch.no_grad()
    def evaluate(self, eval_dataset: Dataset | None = None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict:
        """Evaluate exactly.

        Returns:
            `eval_loss`: nats per target, sum over count in float64; `perplexity`, its exponential; `bits_per_byte` and
            `eval_bytes`, if the data set has `target_bytes`; `eval_accuracy`, the share of targets that the model
            ranks first; `eval_samples`; `eval_tokens`, or `eval_` and `target_name`, the number of targets;
            `eval_runtime` in seconds; `eval_tokens_per_second`; and what `metric` computes. Of several losses,
            `eval_loss` is the sum of `NAME_loss`, `perplexity` the exponential of the first, and there is a
            `NAME_accuracy` of each in the place of `eval_accuracy`.
        """
        self._pause_clock()
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        start = time.monotonic()
        sums = self._sum_over(eval_dataset, metric_key_prefix)
        runtime = time.monotonic() - start
        losses, accuracies = (
            [value / max(count, 1) for value, count in zip(sums[name], sums["num_targets"], strict=True)]
            for name in ("loss", "num_correct")
        )
        metrics = {f"{metric_key_prefix}_loss": sum(losses)} | self._by_name("{}_loss", losses)
        metrics["perplexity"] = math.exp(losses[0]) if losses[0] < 700 else math.inf
        target_bytes = getattr(eval_dataset, "target_bytes", None)
        if target_bytes:
            metrics["bits_per_byte"] = sums["loss"][0] / math.log(2) / target_bytes
            metrics[f"{metric_key_prefix}_bytes"] = target_bytes
        metrics |= self._by_name("{}_accuracy", accuracies) or {f"{metric_key_prefix}_accuracy": accuracies[0]}
        metrics |= sums["metric"]
        metrics[f"{metric_key_prefix}_samples"] = len(eval_dataset)
        metrics[f"{metric_key_prefix}_{self.target_name}"] = sums["num_targets"][0]
        metrics[f"{metric_key_prefix}_runtime"] = round(runtime, 3)
        num_tokens = sums["num_targets"][0] if self.target_name == "tokens" else sums["num_tokens"]
        metrics[f"{metric_key_prefix}_tokens_per_second"] = round(num_tokens / runtime, 1)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _sum_over(self, eval_dataset: Dataset, metric_key_prefix: str) -> dict:
        """Each process scores its share of the batches, then the sums are added up.

        Batch b is scored by process b mod (number of processes). A process that has no batch left in the last round
        takes part with the first one, since a sharded model needs all processes in its forward, but does not count it.
        """
        size, world_size = self.args.eval_batch_size, self.args.world_size
        starts = range(0, len(eval_dataset), size)
        rounds = math.ceil(len(starts) / world_size)
        mine = [i * world_size + self.args.process_index for i in range(rounds)]
        counts = [batch < len(starts) for batch in mine]
        batches = [
            range(start, min(start + size, len(eval_dataset)))
            for start in (starts[batch] if is_counted else 0 for batch, is_counted in zip(mine, counts, strict=True))
        ]
        dataloader = DataLoader(
            eval_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=leave_signals_to_the_main_process,
            generator=torch.Generator(),  # of its own: whether one evaluates must not change the dropout that follows
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            model = self.model_wrapped if self.accelerator._models else prepare_alone(self.accelerator, self.model)
        else:
            model = self.model.to(self.args.device)
        autocast_dtype = {
            (True, False): torch.float16,
            (False, True): torch.bfloat16,
        }.get((self.args.fp16_full_eval, self.args.bf16_full_eval))
        sums = self._tally.new_zeros((len(SUMS), len(self.losses)))
        num_tokens = self._tally.new_zeros(())

        def score_batches() -> Iterator[int]:
            for batch, is_counted in zip(dataloader, counts, strict=True):
                batch = self._prepare_inputs(batch)
                scores = model(**batch, autocast_dtype=autocast_dtype, return_predictions=self.metric is not None)
                sums.add_(torch.stack([scores[name].to(sums.dtype).reshape(-1) for name in SUMS]) * is_counted)
                num_tokens.add_(_num_tokens(batch) * is_counted)
                if self.metric is not None:
                    self._add_to_metric(scores["predictions"], scores["references"], is_counted)
                self.cut_evaluation_if_asked()
                yield len(batch["input_ids"])

        was_training = model.training
        model.eval()
        progress(score_batches(), sum(map(len, batches)), "evaluating", "blocks", self.is_world_process_zero())
        model.train(was_training)
        loss, *counts = self.accelerator.reduce(sums, "sum").tolist()
        counts = [list(map(round, count)) for count in counts]
        sums = {"loss": loss, **dict(zip(SUMS[1:], counts, strict=True)), "metric": {}}
        sums["num_tokens"] = round(self.accelerator.reduce(num_tokens, "sum").item())
        if self.metric is not None:
            computed = self.metric.compute()
            sums["metric"] = {
                f"{metric_key_prefix}_{self.metric.name}_{key}": value for key, value in computed.items()
            }
        return sums

    def _add_to_metric(self, predictions: torch.Tensor, references: torch.Tensor, is_counted: bool) -> None:
        pair = (predictions.tolist(), references.tolist()) if is_counted else ([], [])
        for some_predictions, some_references in gather_object([pair]):
            if some_references:
                self.metric.add_batch(predictions=some_predictions, references=some_references)

    # Checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        self._update_totals()
        self._pause_clock()
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; and of a sharded model always the whole, also in a checkpoint that has the shards too.

        With `--push_to_hub`, Trainer would also upload it here, before it is evaluated.
        """
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call=True)
            return
        weights = gather_full_state_dict(self.accelerator, self.model_wrapped, self._weight_names)
        if self.args.should_save:
            self._save(output_dir, weights)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        output_dir = output_dir or self.args.output_dir
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self.adapter is None:
            model.save_pretrained(output_dir, state_dict=state_dict)
        else:
            with with_weights(model, state_dict):
                save_adapter(model, self.adapter, output_dir)
        save_tokenizer(self.processing_class, output_dir)
        write_run_args(output_dir, self.run_args)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.adapter is None or self.is_fsdp_enabled:  # whose checkpoints have the shards of the whole model
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_saved_adapter(self.model, self.adapter, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.adapter is None or self.is_fsdp_enabled:  # whose checkpoints have the shards of the whole model
            super()._load_best_model()
        else:
            load_saved_adapter(self.model, self.adapter, self.state.best_model_checkpoint)

    def _align_special_tokens(self) -> None:
        """Trainer would give the model the tokenizer's special ids, also where --config_overrides says otherwise."""

    def _load_callback_state(self) -> None:
        """Called when the state of a checkpoint has been read: take up its totals."""
        # A checkpoint of transformers' own Trainer has none: then they count from there.
        saved = self.state.stateful_callbacks.setdefault(TrainingTotals.__name__, self._no_totals().state())
        vars(self.totals).update(saved["args"])
        self._at_last_log = TrainingTotals(**saved["args"])
        super()._load_callback_state()

    # The hub. Trainer's own way uploads training_args.bin, a pickle with the token in it, and a card of its own.

    def init_hf_repo(self, token: str | None = None) -> None:
        """`prepare_upload` has done it."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """CheckpointUploads does it, once the checkpoint is complete."""

    def push_to_hub(self, *args, **kwargs) -> None:
        """Upload the output folder as it is, after the checkpoints that are on their way.

        Raises:
            EarlyEnd: it failed; the message says how to do it again.
        """
        if self.is_world_process_zero():
            self.checkpoint_uploads.finish(self.args)
            upload_results(self.args)


def _num_tokens(batch: dict[str, torch.Tensor]) -> int | torch.Tensor:
    """Tokens that the model reads, padding not counted, nor what only stands in for an example."""
    if isinstance(batch, EmptyBatch):
        return 0
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else mask.sum()


def load_metric(name: str | None):
    """Load a metric of the `evaluate` library by its name on the hub or the path of a folder; None for None."""
    if name is None:
        return None
    import evaluate  # here, since it takes seconds and few runs need it

    try:
        return evaluate.load(name, experiment_id=str(os.getpid()))  # each process keeps its own
    except Exception as error:  # of many types: the name, the network, or the metric's own imports may be wrong
        raise UsageError(f"--metric {name}: cannot be loaded: {explain_hub_error(error, name)}") from error
