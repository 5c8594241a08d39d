"""Flags: the text, and how it is divided into documents and blocks."""

from dataclasses import dataclass, field

from utils.errors import UsageError


@dataclass
class DataArguments:
    """The text, and how it is divided into documents and blocks."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset: a Hub name or a folder that `datasets` can load, or builtin/python-docs, the "
            "language reference that comes with Python."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of --dataset_name, e.g. wikitext-2-raw-v1."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of --dataset_name on the Hub. Default: the newest."}
    )
    dataset_path: str | None = field(
        default=None, metadata={"help": "Folder written by Dataset.save_to_disk or DatasetDict.save_to_disk."}
    )
    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training text: files, globs or folders of .txt .csv .tsv .json .jsonl .parquet, plain or "
            "compressed (.gz .zst .xz .bz2)."
        },
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Validation text, as for --train_file; its format may differ."}
    )
    validation_split_percentage: int = field(
        default=5,
        metadata={"help": "Documents held out without a validation split, in percent; --seed picks them."},
    )
    text_column: str = field(
        default="text",
        metadata={
            "aliases": ["--text_column_name"],
            "help": "Column of the text, or else the only string column.",
        },
    )
    document_by: str = field(
        default="line",
        metadata={
            "choices": ["line", "blank_line", "file"],
            "help": "Documents in .txt files: lines, parts between blank lines, or files.",
        },
    )
    keep_linebreaks: bool = field(
        default=True,
        metadata={"help": "Keep the line breaks of .txt files, so that documents concatenate to the file."},
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Tokenize the training text during training, if it does not fit on disk; needs "
            "--max_steps. --max_eval_samples limits what is read for evaluation."
        },
    )
    shuffle_buffer_size: int = field(
        default=10_000,
        metadata={
            "help": "With --streaming: documents in memory from which the next one is drawn at random; 0 "
            "keeps the order of the text."
        },
    )
    block_size: int | None = field(
        default=None,
        metadata={
            "aliases": ["--max_seq_length"],
            "help": "Tokens per example. Default: the tokenizer's limit, the model's positions or 1024 (512 "
            "in run_plm.py), whichever is smallest.",
        },
    )
    pad_to_max_length: bool = field(
        default=False,
        metadata={"help": "Pad batches to --block_size, for TPUs, not to their longest example."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on the first N blocks only, for a quick try. Default: all."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on the first N blocks only, for a quick try. Default: all."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Threads that tokenize. Default: one per core that this process may use."}
    )
    fast_encoder: str = field(
        default="auto",
        metadata={
            "choices": ["auto", "off"],
            "help": "auto tokenizes with a library many times as fast as `tokenizers`, if its ids are the same on "
            "hard texts and on a sample of the corpus; off never does.",
        },
    )
    overwrite_cache: bool = field(
        default=False, metadata={"help": "Tokenize again even if the result of an earlier run is cached."}
    )
    preprocess_only: bool = field(
        default=False,
        metadata={"help": "Tokenize, print the counts and exit; for a machine without GPUs."},
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
            raise UsageError(f"{' and '.join(given)} contradict each other: give only one of them")
        if not 1 <= self.validation_split_percentage <= 99:
            raise UsageError(
                f"--validation_split_percentage {self.validation_split_percentage} is outside 1..99; to train "
                "without evaluation, give --do_train alone"
            )
        if self.block_size is not None and self.block_size < 2:
            raise UsageError(f"--block_size {self.block_size} leaves nothing to predict: give 2 or more")
        if self.shuffle_buffer_size < 0:
            raise UsageError(f"--shuffle_buffer_size {self.shuffle_buffer_size}: give 0 or more documents")
        if self.streaming and self.max_train_samples is not None:
            raise UsageError(
                "--max_train_samples: with --streaming, --max_steps decides how much is read; leave it out"
            )
        if self.streaming and self.preprocess_only:
            raise UsageError("--preprocess_only and --streaming contradict each other: leave out one of them")
        for name in ("max_train_samples", "max_eval_samples", "preprocessing_num_workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: give 1 or more, or leave it out")

    def max_samples(self, split: str) -> int | None:
        """`--max_train_samples` or `--max_eval_samples`."""
        return self.max_train_samples if split == "train" else self.max_eval_samples

    def tokens_needed(self, split: str, block_size: int) -> int | None:
        """The tokens that `max_samples(split)` blocks hold; None for all."""
        max_samples = self.max_samples(split)
        return None if max_samples is None else max_samples * block_size

    def pad_to_length(self, block_size: int, is_compiled: bool) -> int | None:
        """The length of all batches: for a compiled model too, `block_size`; None to pad to the longest example."""
        return block_size if self.pad_to_max_length or is_compiled else None
