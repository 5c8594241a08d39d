"""Text that a trained model writes itself."""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.examples.base import Examples
from utils.training.trainer import LMTrainer


@dataclass
class SampleArguments:
    """The flag of scripts whose models can write text."""

    sample_tokens: int = field(
        default=0, metadata={"help": "At the end, print up to N tokens of text that the model writes. 0: none."}
    )

    def check_sampling(self, training_args: LMTrainingArguments) -> None:
        """Raises UsageError for a negative number of tokens, or a sharded model, which no process has as a whole."""
        if self.sample_tokens < 0:
            raise UsageError(f"--sample_tokens {self.sample_tokens}: give 0 or more")
        if self.sample_tokens and training_args.is_sharded:
            raise UsageError("--sample_tokens: no process has the whole of a sharded model; leave it out")


def print_sample(trainer: LMTrainer, examples: Examples, num_tokens: int) -> None:
    """Print the beginning of the first example and the model's continuation of it; nothing if `num_tokens` is 0."""
    if num_tokens and trainer.is_world_process_zero():
        first_example = next(iter(examples))
        print(sample_text(trainer.model, trainer.processing_class, num_tokens, first_example["input_ids"]))


def sample_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_tokens: int, prompt_ids: np.ndarray
) -> str:
    """The first 8 of `prompt_ids` and the model's continuation of them, sampled from the 40 likeliest tokens.

    Args:
        num_tokens: the maximum number of new tokens.
        prompt_ids: integers of shape (length,).
    """
    model.eval()
    input_ids = torch.tensor(prompt_ids[:8].astype(np.int64), device=model.device).unsqueeze(0)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    output = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=True, top_k=40, pad_token_id=pad_token_id)
    return tokenizer.decode(output[0], skip_special_tokens=True)
