"""Flags: transformers' TrainingArguments with the defaults of this suite."""

import logging
import time
from dataclasses import dataclass, field

from transformers.utils import is_torch_tf32_available

from utils.compat import CompatTrainingArguments
from utils.config.precision import choose_bf16, has_accelerator
from utils.config.ranges import check_ranges
from utils.config.rehearsal import require_optimizer, require_packages, try_accelerator_config, try_settings
from utils.environment import (
    accelerate_variables,
    launcher_precision,
    launcher_uses_deepspeed,
    launcher_uses_fsdp,
    temporary_environment,
    world_size,
)
from utils.errors import UsageError


logger = logging.getLogger(__name__)


@dataclass
class LMTrainingArguments(CompatTrainingArguments):
    """transformers' TrainingArguments with the defaults of this suite.

    Creating one leaves the environment variables as they were. What accelerate has to find there is in
    `accelerate_environment`, to be set while the Accelerator is created:

        with temporary_environment(**args.accelerate_environment):
            accelerator = Accelerator(...)

    Raises:
        UsageError, ValueError, OSError, ImportError: flags that are out of range, contradict each other or need
            hardware or packages that are missing. The command line turns each into one line.
    """

    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the model and the results. If it holds a checkpoint of an earlier run, that run is "
            "resumed; otherwise it must be empty. Default: trainer_output."
        },
    )
    do_train: bool | None = field(
        default=None, metadata={"help": "Train. Default: true, except with --do_eval alone."}
    )
    do_eval: bool | None = field(
        default=None, metadata={"help": "Evaluate. Default: true, except with --do_train alone."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Start over in a non-empty --output_dir: checkpoints and results of earlier runs are "
            "deleted when training starts, other files are kept."
        },
    )
    logging_steps: float = field(
        default=0.01,
        metadata={"help": "Log every N updates, or, if below 1, after this share of all updates."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Accepted without effect: a NaN loss is always logged."},
    )
    per_device_eval_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Examples of a process that are evaluated at once; the results do not depend on it. Default: as "
            "many as fit into a quarter of the free memory, up to 4,096 tokens on a CPU and 65,536 on a GPU."
        },
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Keep the newest N checkpoints, and the best if it is loaded at the end."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Train in mixed bfloat16. Default: on where the hardware computes it (NVIDIA since "
            "Ampere, CPUs with AVX512-BF16 or AMX), unless --fp16."
        },
    )
    tf32: bool | None = field(
        default=None, metadata={"help": "TF32 matrix products on NVIDIA GPUs. Default: on since Ampere."}
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Accepted for old commands: collators return only what the model reads."},
    )
    report_to: list[str] | None = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "Where to log besides the terminal: tensorboard, wandb, ..., all, none."},
    )
    optim: str = field(
        default=CompatTrainingArguments.default_optim,
        metadata={"help": "Any optimizer of transformers, or lamb (for large batches)."},
    )
    metric: str | None = field(
        default=None,
        metadata={
            "help": "Metric of the library `evaluate` (Hub name or folder), computed from the predicted and "
            "the true token at each target; loss, perplexity and accuracy need none."
        },
    )
    num_processes: int | None = field(
        default=None,
        metadata={"help": "Processes to start on this machine. Default: one per GPU, or 1 without GPUs."},
    )
    max_train_hours: float | None = field(
        default=None,
        metadata={
            "help": "After N hours of training, save a checkpoint and exit with code 75, for queues with a "
            "time limit; leave time for loading, one step and saving. Default: no limit."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Build everything, make two updates and evaluate one batch, print memory, times and sizes of the "
            "run, and stop. Nothing is written but the cache of tokens."
        },
    )

    def __post_init__(self):
        self.start_time = time.monotonic()  # of the run, for its total time
        check_ranges(self)
        if self.output_dir == "":
            raise UsageError("--output_dir is empty: give the name of a folder")
        self._choose_steps()
        if "apex" in (vars(self).get("half_precision_backend"), vars(self).get("fp16_backend")):
            raise UsageError("--half_precision_backend apex: mixed precision is always PyTorch's own; leave it out")
        variables = {"ACCELERATE_MIXED_PRECISION": self._choose_precision()}
        if self.fsdp or launcher_uses_fsdp():
            self._check_fsdp()
        if self.fsdp and not launcher_uses_fsdp():  # FSDP2, which replaces the FSDP that transformers 4.57 would use
            variables["FSDP_VERSION"] = "2"
            variables["FSDP_RESHARD_AFTER_FORWARD"] = str("shard_grad_op" not in self.fsdp).lower()
        if world_size() == 1:
            self.ddp_backend = None  # transformers would look for a process group of this kind
        use_lamb = self.optim == "lamb"  # unknown to transformers; LMTrainer creates it
        if use_lamb:
            self.optim = self.default_optim
        require_packages(self)
        require_optimizer(self.optim)
        try_accelerator_config(self.accelerator_config)
        with temporary_environment(**variables):
            super().__post_init__()
            self.accelerate_environment = accelerate_variables()
        if use_lamb:
            self.optim = "lamb"
        if self.n_gpu > 1:
            if self.num_processes is None:
                logger.warning("using one of %d GPUs; on the command line, each gets its own process", self.n_gpu)
            self._n_gpu = 1  # never DataParallel
        self._check_values()
        self._leave_the_loss_out_of_liger()

    def _choose_steps(self) -> None:
        """Set `do_train` and `do_eval` where they were not given: true, unless the other one alone was asked for."""
        do_train, do_eval = self.do_train, self.do_eval
        self.do_train = not do_eval if do_train is None else do_train
        self.do_eval = not do_train if do_eval is None else do_eval
        if not self.do_train and not self.do_eval:
            raise UsageError("--do_train false --do_eval false: nothing is left to do; leave out one of them")
        if do_eval is False and self.eval_strategy != "no":
            raise UsageError(f"--do_eval false and --eval_strategy {self.eval_strategy} contradict each other")
        if self.save_strategy == "best":
            self.metric_for_best_model = self.metric_for_best_model or "loss"
            if self.eval_strategy == "no":
                raise UsageError("--save_strategy best saves after an evaluation: give --eval_strategy steps or epoch")

    def _choose_precision(self) -> str:
        """Set `bf16`, `tf32` and `use_cpu`; return accelerate's mixed precision: no, fp16, bf16 or the launcher's."""
        given, launcher = self.bf16, launcher_precision()
        self.bf16 = choose_bf16(given, self.fp16, self.use_cpu, launcher)
        if given is None and self.bf16 and self.do_train:
            logger.info("precision: mixed bfloat16, which this machine computes (--bf16 false for float32)")
        if not has_accelerator(self.use_cpu):
            self.use_cpu = True  # otherwise bf16 is refused, and each of several processes trains on its own
            self.dataloader_pin_memory = False
        elif self.tf32 is None and is_torch_tf32_available():
            self.tf32 = True
        if self.fp16 or self.bf16:
            return "fp16" if self.fp16 else "bf16"
        return "no" if launcher is None or given is False else launcher

    def _check_fsdp(self) -> None:
        if self.use_cpu:
            raise UsageError("--fsdp: accelerate shards models on GPUs only; leave it out")
        if world_size() == 1:
            raise UsageError("--fsdp shards a model across processes: give --num_processes 2 or more, or leave it out")
        if not launcher_uses_fsdp() and any(name in self.fsdp for name in ("hybrid_shard", "hybrid_shard_zero2")):
            raise UsageError("--fsdp hybrid_shard: use accelerate launch, see recipes/accelerate/fsdp2_hybrid.yaml")

    def _check_values(self) -> None:
        try_settings(self)
        if not self.save_safetensors:
            raise UsageError("--save_safetensors false: this suite does not write pickles; leave it out")
        if not self.average_tokens_across_devices:
            raise UsageError(
                "--average_tokens_across_devices false: losses are always means over all tokens; leave it out"
            )
        best = (self.metric_for_best_model or "").removeprefix("eval_")
        if best.endswith(("perplexity", "bits_per_byte")):
            raise UsageError("--metric_for_best_model: use eval_loss, which ranks models as perplexity does")
        if best and not best.endswith(("loss", "accuracy")) and self.metric is None:
            raise UsageError(f"--metric_for_best_model {best}: give eval_loss or eval_accuracy, or a --metric too")
        if self.accelerator_config.split_batches or self.accelerator_config.dispatch_batches:
            raise UsageError(
                "--accelerator_config: split_batches and dispatch_batches are unsupported; leave them out"
            )

    def _leave_the_loss_out_of_liger(self) -> None:
        """Let Liger replace layers of the model, but not its forward: this suite computes the loss itself."""
        losses = ("cross_entropy", "fused_linear_cross_entropy")
        given = self.liger_kernel_config or {}
        if any(given.get(name) for name in losses):
            raise UsageError(
                "--liger_kernel_config: this suite has its own loss, also without logits in memory; leave out "
                f"{' and '.join(losses)}"
            )
        self.liger_kernel_config = given | dict.fromkeys(losses, False) if self.use_liger_kernel else given or None

    @property
    def should_save(self) -> bool:
        """Whether this process writes files: never in a dry run."""
        return super().should_save and not self.dry_run

    @property
    def eval_batch_size(self) -> int | None:
        """Examples of a process that are evaluated at once; None for as many as the memory allows."""
        return vars(self).get("per_gpu_eval_batch_size") or self.per_device_eval_batch_size

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds only a part of the model: under FSDP, and under DeepSpeed, where it may be so."""
        return bool(self.fsdp or launcher_uses_fsdp() or self.deepspeed or launcher_uses_deepspeed())
