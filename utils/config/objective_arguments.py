"""Flags that several scripts share."""

from dataclasses import dataclass, field

from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError


@dataclass
class MaskingArguments:
    """How tokens are masked."""

    mlm_probability: float = field(
        default=0.15, metadata={"help": "Share of the tokens that are masked and predicted; 0.15 is BERT's."}
    )
    mask_replace_prob: float = field(
        default=0.8,
        metadata={"help": "Share of the masked tokens that are replaced by the mask token."},
    )
    random_replace_prob: float = field(
        default=0.1,
        metadata={"help": "Share of the masked tokens that are replaced by random tokens."},
    )
    whole_word_mask: bool = field(
        default=False,
        metadata={"help": "Mask all tokens of a word or none; the tokenizer defines the words."},
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
class PermutationArguments:
    """Which tokens are predicted, of a model that predicts them in a random order."""

    plm_probability: float = field(
        default=1 / 6,
        metadata={"help": "Share of the tokens that are predicted; the others are context. 1/6 is XLNet's."},
    )
    max_span_length: int = field(
        default=5, metadata={"help": "Predicted tokens come in spans of 1 to N neighbors; 5 is XLNet's."}
    )

    def __post_init__(self):
        if not 0 < self.plm_probability <= 1:
            raise UsageError(f"--plm_probability {self.plm_probability}: give a number above 0, at most 1")
        if self.max_span_length < 1:
            raise UsageError(f"--max_span_length {self.max_span_length}: give 1 or more")

    def check_span_length(self, block_size: int) -> None:
        """Raises UsageError for spans that are longer than an example."""
        if self.max_span_length > block_size:
            raise UsageError(f"--max_span_length {self.max_span_length} is more than an example has tokens: give less")


@dataclass
class LineByLineArguments:
    """Whether an example is a document or a block full of text."""

    line_by_line: bool = field(
        default=False,
        metadata={
            "help": "Use one example per document (per line of a .txt file, without line breaks unless "
            "--keep_linebreaks true), cut at --block_size, instead of full blocks."
        },
    )

    def apply_defaults(self, data_args: DataArguments, training_args: LMTrainingArguments, run_args: dict) -> None:
        """Refuse --group_by_length for packed blocks; line by line, drop line breaks unless they were asked for.

        Args:
            run_args: the flags that were given, from `parse_arguments`.
        """
        if training_args.group_by_length and not self.line_by_line:
            raise UsageError("--group_by_length goes with --line_by_line: packed blocks have one length; leave it out")
        if self.line_by_line and "keep_linebreaks" not in run_args:
            data_args.keep_linebreaks = False
