"""Flags that several objectives share."""

from dataclasses import dataclass, field

from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError


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
class LineByLineArguments:
    """The flags of the scripts that make DocumentBlocks on request."""

    line_by_line: bool = field(
        default=False,
        metadata={
            "help": "One example for each document (each line of a .txt file, without its line end unless "
            "--keep_linebreaks true), cut at --max_seq_length, instead of blocks full of text."
        },
    )

    def apply_defaults(self, data_args: DataArguments, training_args: LMTrainingArguments, run_args: dict) -> None:
        """Refuse what packed blocks have no use for; line by line, leave line ends out unless they were asked for.

        Args:
            run_args: the flags that were given, from `parse_arguments`.
        """
        if training_args.group_by_length and not self.line_by_line:
            raise UsageError("--group_by_length goes with --line_by_line: packed blocks have one length; leave it out")
        if self.line_by_line and "keep_linebreaks" not in run_args:
            data_args.keep_linebreaks = False
