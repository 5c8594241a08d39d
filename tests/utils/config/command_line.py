"""A small command line for run_clm.py, and its values."""

from run_clm import CausalLMArguments
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.config.parser import parse_arguments
from utils.config.training_arguments import LMTrainingArguments


NEEDED = {"model_type": "gpt2", "train_tokenizer": "bpe", "train_file": ["a.txt", "b.txt"], "output_dir": "out"}
SCALARS = {
    **NEEDED,
    "block_size": 64,
    "learning_rate": 0.0003,
    "append_eos": True,
    "keep_linebreaks": False,
    "bf16": False,
    "config_overrides": "n_embd=32,n_layer=2",
}


def parse(*flags) -> dict:
    """All values of all dataclasses by name, and the flags that were given, as `run_args`."""
    *parsed, run_args = parse_arguments(
        ModelArguments, DataArguments, CausalLMArguments, LMTrainingArguments, args=[str(flag) for flag in flags]
    )
    return {name: value for values in parsed for name, value in vars(values).items()} | {"run_args": run_args}


def as_flags(values: dict) -> list[str]:
    flags = []
    for key, value in values.items():
        flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def parse_needed(*flags) -> dict:
    return parse(*as_flags(NEEDED), *flags)
