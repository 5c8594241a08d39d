"""Flags: where pairs of texts come from, for models that are trained on two tasks."""

from dataclasses import dataclass, field, fields

from utils.config.objective_arguments import MaskingArguments
from utils.errors import UsageError


MASK_FLAGS = tuple(flag.name for flag in fields(MaskingArguments))
PAIR_FLAGS = ("segment_by", "sentence_language", "nsp_probability", "short_seq_probability")


@dataclass
class SentencePairArguments(MaskingArguments):
    """How tokens are masked, and which pairs of texts are the examples."""

    sentence_task: str | None = field(
        default=None,
        metadata={
            "choices": ["nsp", "sop"],
            "help": "nsp: B follows A, or is from another document. sop: A and B are in order, or swapped. Default: "
            "sop for ALBERT, nsp for other models.",
        },
    )
    segment_by: str = field(
        default="line",
        metadata={"choices": ["line", "sentence"], "help": "What A and B are made of: lines or sentences."},
    )
    sentence_language: str = field(
        default="en", metadata={"help": "With --segment_by sentence: ISO 639 code of the language; en where unknown."}
    )
    nsp_probability: float = field(
        default=0.5, metadata={"help": "Share of pairs whose B is from another document, or for sop, swapped pairs."}
    )
    short_seq_probability: float = field(
        default=0.1, metadata={"help": "Share of pairs that fill only a random part of --block_size."}
    )
    is_already_preprocessed: bool = field(
        default=False,
        metadata={
            "help": "The dataset has pairs as token ids: input_ids, token_type_ids, attention_mask and "
            "next_sentence_label."
        },
    )
    is_already_masked: bool = field(
        default=False, metadata={"help": "As --is_already_preprocessed, with masked tokens and a column labels."}
    )
    text_column_a: str | None = field(
        default=None, metadata={"help": "The dataset has pairs as text: column of A. Also needs next_sentence_label."}
    )
    text_column_b: str | None = field(default=None, metadata={"help": "Column of B."})

    def __post_init__(self):
        super().__post_init__()
        self.is_already_preprocessed |= self.is_already_masked
        for name in ("nsp_probability", "short_seq_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name} {getattr(self, name)}: give a number from 0 to 1")
        if (self.text_column_a is None) != (self.text_column_b is None):
            raise UsageError("--text_column_a and --text_column_b go together: give both")
        if self.text_column_a and self.is_already_preprocessed:
            raise UsageError("--text_column_a is about text and --is_already_preprocessed about ids: leave one out")

    def refuse_ignored_flags(self, source: str, run_args: dict) -> None:
        """Raise UsageError for a flag that this kind of data would ignore.

        Args:
            source: "documents", or pairs as "texts" or "ids"; see `pair_source`.
            run_args: the flags that were given, from `parse_arguments`.
        """
        ignored = {"keep_linebreaks": "texts lose the white space around them"}
        if source != "documents":
            flags = (*PAIR_FLAGS, "document_by", "text_column")
            ignored |= dict.fromkeys(flags, "the dataset already consists of pairs")
        if source == "ids":
            flags = ("whole_word_mask", "train_tokenizer", "preprocess_only")
            ignored |= dict.fromkeys(flags, "the dataset has token ids, not text")
        if self.is_already_masked:
            ignored |= dict.fromkeys(MASK_FLAGS, "the dataset is masked already")
        if self.segment_by == "line":
            ignored["sentence_language"] = "it goes with --segment_by sentence"
        for flag in run_args:
            if flag in ignored:
                raise UsageError(f"--{flag} has no effect: {ignored[flag]}; leave it out")

    def settings(self, source: str) -> dict:
        """The values of the flags that have an effect on this kind of data."""
        flags = () if self.is_already_masked else MASK_FLAGS
        flags += PAIR_FLAGS if source == "documents" else ()
        return {flag: getattr(self, flag) for flag in flags}
