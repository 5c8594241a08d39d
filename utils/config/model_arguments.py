"""Flags: which model and tokenizer."""

import logging
from dataclasses import dataclass, field

from utils.errors import UsageError


logger = logging.getLogger(__name__)


DTYPES = ("float32", "bfloat16", "float16", "auto")


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
