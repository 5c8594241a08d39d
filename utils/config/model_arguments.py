"""Flags: which model and tokenizer."""

from dataclasses import dataclass, field

from utils.errors import UsageError


DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass
class ModelArguments:
    """Which model and tokenizer, from a checkpoint or from scratch."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to start from: a Hub name or a folder. Default: train from scratch."},
    )
    model_type: str | None = field(
        default=None,
        metadata={"help": "From scratch: architecture in its standard configuration, e.g. gpt2."},
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "From scratch: Hub name or folder of a config.json; no weights are loaded."},
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "From scratch: changes to the configuration, e.g. n_embd=256,n_layer=4."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer: a Hub name or a folder. Default: that of the model or --config_name."},
    )
    train_tokenizer: str | None = field(
        default=None,
        metadata={
            "choices": ["bpe", "wordpiece", "unigram"],
            "help": "Train a tokenizer on the training text and save it with the model: bpe (byte-level, as "
            "for GPT-2), wordpiece (as for BERT) or unigram (as for XLNet and ALBERT).",
        },
    )
    vocab_size: int = field(
        default=32000,
        metadata={"help": "Maximum vocabulary size for --train_tokenizer; use less for small corpora."},
    )
    tokenizer_sample_bytes: int = field(
        default=1_000_000_000,
        metadata={
            "help": "With --train_tokenizer: train on about as many bytes of text, from all of a larger corpus. 1 GB "
            "takes a few minutes."
        },
    )
    use_fast_tokenizer: bool = field(
        default=True,
        metadata={"help": "Use the Rust tokenizer. Without it, bits_per_byte is not reported."},
    )
    dtype: str = field(
        default="float32",
        metadata={
            "aliases": ["--torch_dtype"],
            "choices": DTYPES,
            "help": "Type of the weights: float32, bfloat16 (loses small updates), float16 or auto (as "
            "saved); for mixed precision use --bf16.",
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "eager, sdpa, flash_attention_2, ... Default: the fastest that the model supports."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for downloads and tokenized corpora. Default: the Hugging Face cache."},
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the model and tokenizer on the Hub."}
    )
    token: str | None = field(
        default=None,
        metadata={"help": "Access token for private repositories. Default: the one stored by `hf auth login`."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run model code that comes with the checkpoint, if you trust its author."},
    )
    low_cpu_mem_usage: bool = field(
        default=False, metadata={"help": "Accepted for old commands: weights are always loaded this way."}
    )

    def __post_init__(self):
        if self.model_name_or_path and (self.config_overrides or self.config_name or self.model_type):
            flag = next(name for name in ("config_overrides", "config_name", "model_type") if getattr(self, name))
            raise UsageError(
                f"--{flag} builds a model from scratch and --model_name_or_path loads one: leave out one of them"
            )
        if not (self.model_name_or_path or self.config_name or self.model_type):
            raise UsageError(
                "no model: give --model_name_or_path, or --model_type or --config_name to train from scratch"
            )
        if self.tokenizer_sample_bytes < 1:
            raise UsageError(f"--tokenizer_sample_bytes {self.tokenizer_sample_bytes}: give 1 or more")
        if self.train_tokenizer and self.tokenizer_name:
            raise UsageError("--train_tokenizer and --tokenizer_name contradict each other: leave out one of them")
        if self.train_tokenizer and self.model_name_or_path:
            raise UsageError(
                "--train_tokenizer would change the meaning of the tokens of --model_name_or_path: leave it out, "
                "or train from scratch with --model_type or --config_name"
            )
        if not (self.tokenizer_name or self.train_tokenizer or self.model_name_or_path or self.config_name):
            raise UsageError("no tokenizer: give --tokenizer_name, or --train_tokenizer {bpe,wordpiece,unigram}")
        if self.attn_implementation and "/" in self.attn_implementation and not self.trust_remote_code:
            raise UsageError(
                f"--attn_implementation {self.attn_implementation} names a repository whose code would run: "
                "add --trust_remote_code if you trust its author"
            )
