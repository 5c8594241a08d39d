"""The flags that all scripts share: the model, the data, and transformers' TrainingArguments with our defaults."""

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

from utils.compat import LineTrainingArguments
from utils.config.parser import UsageError


logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "auto")
# What `accelerate launch` chose. TrainingArguments writes its own choice into the same variable, where a second run
# in one process would read it, so it is read here, once.
LAUNCHER_PRECISION = os.environ.get("ACCELERATE_MIXED_PRECISION")
LAUNCHER_USES_DEEPSPEED = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
LAUNCHER_USES_FSDP = os.environ.get("ACCELERATE_USE_FSDP") == "true"


@dataclass
class ModelArguments:
    """Which model and tokenizer, from a checkpoint or from scratch."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to start from: a hub name or a folder. Leave it out to train from scratch."},
    )
    model_type: str | None = field(
        default=None,
        metadata={"help": "From scratch: the kind of model, e.g. gpt2 or llama, with its default configuration."},
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "From scratch: hub name or folder whose config.json is used, without its weights."},
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "From scratch: changes to the configuration, as key=value,key=value, e.g. "
            "n_embd=256,n_layer=4,n_head=4. Keys must exist in that configuration."
        },
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer: a hub name or a folder. Default: the one of --model_name_or_path."},
    )
    train_tokenizer: str | None = field(
        default=None,
        metadata={
            "choices": ["bpe", "wordpiece", "unigram"],
            "help": "Train a tokenizer on the training documents and save it with the model: bpe (byte-level, as "
            "GPT-2's), wordpiece (as BERT's) or unigram (as XLNet's and ALBERT's).",
        },
    )
    vocab_size: int = field(
        default=32000,
        metadata={"help": "Largest number of tokens for --train_tokenizer. Small corpora want less, e.g. 4096."},
    )
    use_fast_tokenizer: bool = field(
        default=True,
        metadata={"help": "Use the Rust tokenizer. The slow one has no character offsets, hence no bits_per_byte."},
    )
    dtype: str = field(
        default="float32",
        metadata={
            "aliases": ["--torch_dtype"],
            "choices": DTYPES,
            "help": "Type of the weights in memory; auto takes the checkpoint's. For mixed precision leave float32 "
            "and use --bf16; bfloat16 halves the memory but loses small updates.",
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "eager, sdpa, flash_attention_2, ...; default: the fastest that the model supports."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where downloads and tokenized corpora are kept. Default: the Hugging Face cache."},
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the model and tokenizer on the hub."}
    )
    token: str | None = field(
        default=None,
        metadata={"help": "Access token for private repositories. Default: the one stored by `hf auth login`."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run model code that comes with the checkpoint. Only for authors whom you trust."},
    )
    low_cpu_mem_usage: bool = field(
        default=False, metadata={"help": "Accepted for old commands; loading always works this way now."}
    )

    def __post_init__(self):
        if self.model_name_or_path and (self.config_overrides or self.config_name or self.model_type):
            flag = next(name for name in ("config_overrides", "config_name", "model_type") if getattr(self, name))
            raise UsageError(
                f"--{flag} builds a model from scratch and --model_name_or_path loads one: leave out one of them"
            )
        if not (self.model_name_or_path or self.config_name or self.model_type):
            raise UsageError("no model: give --model_name_or_path, or --model_type or --config_name to start afresh")
        if self.train_tokenizer and self.tokenizer_name:
            raise UsageError("--train_tokenizer and --tokenizer_name contradict each other: leave out one of them")
        if self.train_tokenizer and self.model_name_or_path:
            raise UsageError(
                "--train_tokenizer would give new meanings to the tokens of --model_name_or_path: leave it out, "
                "or train from scratch with --model_type or --config_name"
            )
        if not (self.tokenizer_name or self.train_tokenizer or self.model_name_or_path or self.config_name):
            raise UsageError("no tokenizer: give --tokenizer_name, or --train_tokenizer {bpe,wordpiece,unigram}")
        if self.attn_implementation and "/" in self.attn_implementation and not self.trust_remote_code:
            raise UsageError(
                f"--attn_implementation {self.attn_implementation} names a repository whose code would be run: "
                "add --trust_remote_code if you trust its author"
            )
        if self.low_cpu_mem_usage:
            logger.warning("--low_cpu_mem_usage has no effect: weights are always loaded without a second copy")


@dataclass
class DataArguments:
    """Which text, and how it becomes documents and blocks."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub name or local folder that `datasets` reads, or builtin/python-docs: the language reference "
            "that every Python carries."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of --dataset_name, e.g. wikitext-2-raw-v1."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of --dataset_name on the hub. Default: the newest."}
    )
    dataset_path: str | None = field(
        default=None, metadata={"help": "Folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."}
    )
    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training text: files, globs or folders of .txt .csv .tsv .json .jsonl .parquet, plain or "
            "compressed (.gz .zst .xz .bz2)."
        },
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Validation text, as --train_file; the format may be another one."}
    )
    validation_split_percentage: int = field(
        default=5,
        metadata={
            "help": "Without a validation split: how many per cent of the training documents are held out. Which "
            "ones depends on --seed alone."
        },
    )
    text_column: str = field(
        default="text",
        metadata={
            "aliases": ["--text_column_name"],
            "help": "Column that holds the text. Where it does not exist, the only column of strings is taken.",
        },
    )
    document_by: str = field(
        default="line",
        metadata={
            "choices": ["line", "blank_line", "file"],
            "help": "What a document is in .txt files: a line, a stretch between blank lines, or the whole file.",
        },
    )
    keep_linebreaks: bool = field(
        default=True,
        metadata={"help": "Keep the line ends of .txt files, so that the documents put together are the file."},
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read, tokenize and cut the training text while training, instead of before it: for corpora that "
            "do not fit on the disk. Wants --max_steps. Evaluation text is still tokenized first; "
            "--max_eval_samples bounds how far the stream is read for it."
        },
    )
    shuffle_buffer_size: int | None = field(
        default=None,
        metadata={
            "help": "With --streaming: documents in memory out of which the next one is drawn, anew each epoch. More "
            "shuffles better. 0 keeps the order of the text. Default: 10000."
        },
    )
    block_size: int | None = field(
        default=None,
        metadata={
            "aliases": ["--max_seq_length"],
            "help": "Tokens in one training example. Default: the tokenizer's limit, the model's positions or 1024 "
            "(512 in run_plm.py), whichever is least.",
        },
    )
    pad_to_max_length: bool = field(
        default=False,
        metadata={
            "help": "Pad each batch to --block_size, as TPUs want it, and not to its longest example: the last block, "
            "lines and short pairs."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on the first so many blocks only, to try things out."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on the first so many blocks only, to try things out."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Threads that tokenize. Default: one for each core this process may use."}
    )
    overwrite_cache: bool = field(
        default=False, metadata={"help": "Tokenize again even if the result of an earlier run is there."}
    )
    preprocess_only: bool = field(
        default=False,
        metadata={
            "help": "Tokenize, print the counts and exit: a job for a machine without GPUs, ahead of the training."
        },
    )

    def __post_init__(self):
        sources = {
            "--dataset_name": self.dataset_name,
            "--dataset_path": self.dataset_path,
            "--train_file/--validation_file": self.train_file or self.validation_file,
        }
        given = [flag for flag, value in sources.items() if value]
        if not given:
            raise UsageError("no text: give --dataset_name, --dataset_path, or --train_file and --validation_file")
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} contradict each other: the text has one source")
        if self.dataset_config_name and not self.dataset_name:
            raise UsageError("--dataset_config_name goes with --dataset_name")
        if self.dataset_revision and not self.dataset_name:
            raise UsageError("--dataset_revision goes with --dataset_name")
        if not 1 <= self.validation_split_percentage <= 99:
            raise UsageError(
                f"--validation_split_percentage {self.validation_split_percentage} is outside 1..99; to train "
                "without evaluation give --do_train alone"
            )
        if self.block_size is not None and self.block_size < 2:
            raise UsageError(f"--block_size {self.block_size} leaves nothing to predict: give 2 or more")
        if self.shuffle_buffer_size is not None and not self.streaming:
            raise UsageError("--shuffle_buffer_size goes with --streaming: without it all blocks are shuffled")
        if self.shuffle_buffer_size is None:
            self.shuffle_buffer_size = 10_000
        if self.shuffle_buffer_size < 0:
            raise UsageError(f"--shuffle_buffer_size {self.shuffle_buffer_size}: give 0 or more documents")
        if self.streaming and self.max_train_samples is not None:
            raise UsageError("--max_train_samples: how much of a stream is read, --max_steps says; leave it out")
        if self.streaming and self.preprocess_only:
            raise UsageError("--preprocess_only and --streaming contradict each other: leave out one of them")
        for name in ("max_train_samples", "max_eval_samples", "preprocessing_num_workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: give 1 or more, or leave it out")


@dataclass
class MaskingArguments:
    """How tokens are masked, in the scripts that train masked models."""

    mlm_probability: float = field(
        default=0.15, metadata={"help": "Share of the tokens that are masked, and predicted. Default: 0.15, BERT's."}
    )
    mask_replace_prob: float = field(
        default=0.8,
        metadata={"help": "Share of the masked tokens that the model sees as the mask token. Default: 0.8."},
    )
    random_replace_prob: float = field(
        default=0.1,
        metadata={"help": "Share that it sees as a random token; the rest it sees as they are. Default: 0.1."},
    )
    whole_word_mask: bool = field(
        default=False,
        metadata={"help": "Mask all tokens of a word or none. What a word is, the tokenizer says."},
    )

    def __post_init__(self):
        if not 0 < self.mlm_probability < 1:
            raise UsageError(f"--mlm_probability {self.mlm_probability}: give a number between 0 and 1")
        for name in ("mask_replace_prob", "random_replace_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name} {getattr(self, name)}: give a number from 0 to 1")
        if self.mask_replace_prob + self.random_replace_prob > 1 + 1e-9:
            raise UsageError(
                f"--mask_replace_prob {self.mask_replace_prob} and --random_replace_prob {self.random_replace_prob} "
                "are shares of the masked tokens and add up to more than 1: give less"
            )


@dataclass
class LMTrainingArguments(LineTrainingArguments):
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
        default=LineTrainingArguments.default_optim,
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
    run_args: dict = field(default_factory=dict, init=False, repr=False)

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
