"""Flags: transformers' TrainingArguments with the defaults of this suite."""

import logging
import math
import os
from dataclasses import dataclass, field

import torch
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import (
    is_liger_kernel_available,
    is_torch_bf16_gpu_available,
    is_torch_tf32_available,
    is_torch_xla_available,
)

from utils.compat import CompatTrainingArguments
from utils.errors import UsageError


logger = logging.getLogger(__name__)


# What `accelerate launch` chose. TrainingArguments writes its own choice into the same variable, where a second run
# in one process would read it, so it is read here, once.
LAUNCHER_PRECISION = os.environ.get("ACCELERATE_MIXED_PRECISION")


LAUNCHER_USES_DEEPSPEED = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


LAUNCHER_USES_FSDP = os.environ.get("ACCELERATE_USE_FSDP") == "true"


@dataclass
class LMTrainingArguments(CompatTrainingArguments):
    """transformers' TrainingArguments with the defaults of this suite.

    Its checks raise ValueError, which the command line turns into one line.
    """

    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where the model and the results go. A folder that holds a checkpoint of an earlier run is "
            "resumed; another folder must be empty. Default: trainer_output."
        },
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Start anew in an --output_dir that is not empty. Checkpoints and results of earlier runs of "
            "these scripts are removed when training starts; other files stay."
        },
    )
    logging_steps: float = field(
        default=0.01,
        metadata={"help": "Log every so many steps; below 1: a share of all steps. Default: about 100 logs a run."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave steps with a NaN loss out of the logged loss. Off, so that they are seen."},
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "How many checkpoints are kept, the newest ones. Default: 2."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Train in mixed bfloat16 precision. Default: where the hardware computes it (NVIDIA since Ampere, "
            "CPUs with AVX512-BF16 or AMX), unless --fp16. Evaluation keeps the precision of the weights."
        },
    )
    tf32: bool | None = field(
        default=None, metadata={"help": "TF32 matrix products on NVIDIA GPUs. Default: on since Ampere."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Our collators return what the model reads; nothing is left to remove."}
    )
    report_to: list[str] | None = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "Where logs go besides the terminal: tensorboard (default), wandb, mlflow, ..., none, all."},
    )
    optim: str = field(
        default=CompatTrainingArguments.default_optim,
        metadata={
            "help": "The optimizer: any of transformers', e.g. adamw_torch or adafactor, or lamb, for large batches "
            "(You et al. 2020)."
        },
    )
    metric: str | None = field(
        default=None,
        metadata={
            "help": "A metric of the `evaluate` library, by hub name or folder, computed from the predicted and the "
            "true token at each target. Loss, perplexity and accuracy need none."
        },
    )
    num_processes: int | None = field(
        default=None,
        metadata={
            "help": "Processes of this machine that share the work. Default: one for each GPU; without GPUs, 1. "
            "Several machines: torchrun."
        },
    )
    max_train_hours: float | None = field(
        default=None,
        metadata={
            "help": "End the training so many hours after it began (or was resumed), with a checkpoint and exit code "
            "75, for queues with a limit of time. Leave room for loading, one step and saving. Default: no limit."
        },
    )

    def __post_init__(self):
        if not self.do_train and not self.do_eval:
            self.do_train = self.do_eval = True
        self._choose_precision()
        if self.fsdp or LAUNCHER_USES_FSDP:
            self._choose_fsdp()
        use_lamb = self.optim == "lamb"  # which transformers does not know; LMTrainer does
        if use_lamb:
            self.optim = self.default_optim
        super().__post_init__()
        if use_lamb:
            self.optim = "lamb"
        get_reporting_integration_callbacks(self.report_to)  # raises for a name that it does not know
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: give 1 or more")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed {self.seed}: give a number from 0 to 4294967295")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise UsageError(f"--num_train_epochs {self.num_train_epochs}: give more than 0, or --do_eval alone")
        if self.use_liger_kernel and not is_liger_kernel_available():
            raise UsageError("--use_liger_kernel: the package is missing; pip install liger-kernel")
        if not self.save_safetensors:
            raise UsageError("--save_safetensors false: this suite writes no pickles; leave it out")
        if self.n_gpu > 1:
            if self.num_processes is None:
                logger.warning("one of the %d GPUs is used; the command line starts a process for each", self.n_gpu)
            self._n_gpu = 1  # never DataParallel
        if not self.average_tokens_across_devices:
            raise UsageError("--average_tokens_across_devices false: losses are always means over all tokens here")
        best = (self.metric_for_best_model or "").removeprefix("eval_")
        if best in ("perplexity", "bits_per_byte"):
            raise UsageError("--metric_for_best_model: use eval_loss, which has the same order as perplexity")
        if best not in ("", "loss", "accuracy") and self.metric is None:
            raise UsageError(f"--metric_for_best_model {best}: give eval_loss or eval_accuracy, or a --metric too")
        if self.accelerator_config.split_batches or self.accelerator_config.dispatch_batches:
            raise UsageError(
                "--accelerator_config: split_batches and dispatch_batches do not work here; leave them out"
            )
        if not 0 <= self.learning_rate < math.inf:
            raise UsageError(f"--learning_rate {self.learning_rate}: give a number from 0 on")
        if self.max_train_hours is not None and not self.max_train_hours > 0:
            raise UsageError(f"--max_train_hours {self.max_train_hours}: give more than 0, or leave it out")

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the model only (FSDP, or DeepSpeed, which may do so)."""
        return bool(self.fsdp or LAUNCHER_USES_FSDP or self.deepspeed or LAUNCHER_USES_DEEPSPEED)

    def _choose_fsdp(self):
        """FSDP2, which replaces the FSDP that transformers 4 means by --fsdp."""
        if self.use_cpu:
            raise UsageError("--fsdp: accelerate shards a model on GPUs alone; leave it out")
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise UsageError(
                "--fsdp shares a model out among processes: give --num_processes 2 or more, or leave it out"
            )
        if LAUNCHER_USES_FSDP:
            return
        if "hybrid_shard" in self.fsdp or "hybrid_shard_zero2" in self.fsdp:
            raise UsageError(
                "--fsdp hybrid_shard: accelerate launch does it, see recipes/accelerate/fsdp2_hybrid.yaml"
            )
        os.environ["FSDP_VERSION"] = "2"
        os.environ["FSDP_RESHARD_AFTER_FORWARD"] = str("shard_grad_op" not in self.fsdp).lower()

    def _choose_precision(self):
        has_tpu = is_torch_xla_available() and not self.use_cpu
        has_accelerator = has_tpu or (torch.accelerator.is_available() and not self.use_cpu)
        cpu_has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        native_bf16 = is_torch_bf16_gpu_available() if has_accelerator else cpu_has_bf16
        if self.bf16 and not (native_bf16 or has_tpu):
            if not self.use_cpu:
                raise UsageError(
                    "--bf16: this machine does not compute bfloat16; leave it out, or add --use_cpu, which imitates it"
                )
            logger.warning("--bf16: this CPU imitates bfloat16, which takes longer than float32")
        os.environ["ACCELERATE_MIXED_PRECISION"] = LAUNCHER_PRECISION or "no"
        if self.bf16 is None:
            self.bf16 = native_bf16 and not self.fp16 and LAUNCHER_PRECISION is None
            if self.bf16 and self.do_train:
                logger.info(
                    "precision: training in mixed bfloat16, which this machine computes (--bf16 false: float32)"
                )
        elif not self.bf16 and not self.fp16:
            os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        if not has_accelerator:
            self.use_cpu = True  # without it, bf16 is refused and each of several processes trains for itself
            self.dataloader_pin_memory = False
        if self.tf32 is None and has_accelerator and is_torch_tf32_available():
            self.tf32 = True
