"""What --help and --help_all print: flags in groups, with their defaults."""

import argparse
import enum
import textwrap
from dataclasses import fields

from transformers.hf_argparser import string_to_bool

from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.graphcore_arguments import IPUArguments
from utils.config.model_arguments import ModelArguments
from utils.config.training_arguments import LMTrainingArguments


WIDTH = 119
COLUMN = 35  # where the texts begin
GRAPHCORE = "Flags of Graphcore's scripts, without effect here (except --lamb, which is refused: use --optim lamb)"

# The flags of LMTrainingArguments in --help. Those of transformers have a shorter text here than there; "" stands for
# one of our own, whose text is in its dataclass.
TRAINING = {
    "do_train": "Train. Default: true, except with --do_eval alone.",
    "num_train_epochs": "Passes over the training data.",
    "max_steps": "Number of updates; if positive, it overrides --num_train_epochs.",
    "max_train_hours": "",
    "dry_run": "",
    "per_device_train_batch_size": "Examples per process in each forward pass.",
    "gradient_accumulation_steps": "Forward passes per update.",
    "learning_rate": "Peak learning rate.",
    "lr_scheduler_type": "linear, cosine, constant, constant_with_warmup, ...",
    "warmup_steps": "Updates in which the learning rate rises from 0.",
    "warmup_ratio": "The same as a share of all updates; --warmup_steps has priority.",
    "optim": "",
    "weight_decay": "Weight decay, except for biases and normalization layers.",
    "adam_beta1": "Decay rate of Adam's mean of the gradients.",
    "adam_beta2": "Decay rate of Adam's mean of the squared gradients.",
    "adam_epsilon": "Added to Adam's denominator.",
    "max_grad_norm": "Clip gradients to this norm; 0 for no clipping.",
    "label_smoothing_factor": "Share of the target probability spread over the vocabulary.",
    "seed": "Seed of everything random: weights, order, masks, dropout.",
    "bf16": "",
    "fp16": "Train in mixed float16, for GPUs before Ampere.",
    "tf32": "",
    "gradient_checkpointing": "Save memory by computing activations again in the backward pass.",
    "torch_compile": "Compile the model; faster after a slow start.",
    "group_by_length": "Batch examples of similar length, which saves padding.",
    "dataloader_num_workers": "Processes that prepare batches; 0 for the training process itself.",
    "num_processes": "",
    "use_cpu": "Do not use GPUs.",
    "fsdp": "Shard the model across GPUs: 'full_shard auto_wrap', or shard_grad_op.",
    "resume_from_checkpoint": "Checkpoint to resume from. Default: the newest in --output_dir.",
}
EVALUATION = {
    "do_eval": "Evaluate. Default: true, except with --do_train alone.",
    "eval_strategy": "When to evaluate during training: no, steps or epoch.",
    "eval_steps": "With --eval_strategy steps: every N updates. Default: --logging_steps.",
    "per_device_eval_batch_size": "Examples per process in each forward pass. Default: as many as memory allows.",
    "metric": "",
    "load_best_model_at_end": "Save the weights of the best checkpoint instead of the last.",
    "metric_for_best_model": "eval_loss, eval_accuracy or a --metric. Default: eval_loss.",
}
OUTPUT = {
    "output_dir": "",
    "overwrite_output_dir": "",
    "save_strategy": "When to write checkpoints: no, steps, epoch, best.",
    "save_steps": "With --save_strategy steps: every N updates.",
    "save_total_limit": "",
    "logging_steps": "",
    "logging_nan_inf_filter": "",
    "report_to": "",
    "remove_unused_columns": "",
    "push_to_hub": "Upload checkpoints and the final model to the Hub.",
    "hub_model_id": "Repository for --push_to_hub. Default: the name of --output_dir.",
}


def short_help(parser: argparse.ArgumentParser, dataclass_types: tuple[type, ...]) -> str:
    """The flags of this suite, and those of transformers that most runs need, in at most 150 lines."""
    actions = _actions(parser)
    lines = _usage(parser)
    for title, texts in _groups(dataclass_types).items():
        lines += ["", title]
        if title == GRAPHCORE:
            lines += textwrap.wrap(", ".join(f"--{flag}" for flag in texts), WIDTH - 2)
            continue
        for flag, text in texts.items():
            lines += _entry(actions[flag], text or actions[flag].help)
    lines += ["", "--help_all lists all flags, including the other ones of transformers' TrainingArguments."]
    return "\n".join(lines)


def full_help(parser: argparse.ArgumentParser, dataclass_types: tuple[type, ...]) -> str:
    """All flags, those of transformers with its own texts."""
    actions = _actions(parser)
    groups = _groups(dataclass_types)
    known = {flag for texts in groups.values() for flag in texts}
    groups["Other flags of transformers"] = {flag: "" for flag in actions if flag not in known}
    lines = _usage(parser)
    for title, texts in groups.items():
        lines += ["", title]
        for flag in texts:
            lines += _entry(actions[flag], actions[flag].help or "")
    return "\n".join(lines)


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    return [
        f"usage: {parser.prog} [FILE.yaml | FILE.json] [--flag value ...]",
        "FILE has one `flag: value` per flag; later flags win. Defaults are in brackets. --no_FLAG is --FLAG false.",
    ]


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The flags of the parser by name; `--no_flag` belongs to `--flag`."""
    return {action.dest: action for action in parser._actions if action.option_strings[0] == f"--{action.dest}"}


def _groups(dataclass_types: tuple[type, ...]) -> dict[str, dict[str, str]]:
    """From a title to the flags below it, each with the text that replaces its own in --help, or ""."""
    titles = ("Model", "Data", "Objective", "Adapter", "Training", "Evaluation", "Output", GRAPHCORE)
    title_of = {ModelArguments: "Model", DataArguments: "Data", AdapterArguments: "Adapter", IPUArguments: GRAPHCORE}
    groups = {title: {} for title in titles}
    for arguments in dataclass_types:
        if arguments is LMTrainingArguments:
            groups |= {"Training": TRAINING, "Evaluation": EVALUATION, "Output": OUTPUT}
        else:
            title = title_of.get(arguments, "Objective")
            groups[title] |= {flag.name: "" for flag in fields(arguments) if flag.init}
    return {title: texts for title, texts in groups.items() if texts}


def _entry(action: argparse.Action, text: str) -> list[str]:
    """The lines of one flag: its name and kind of value on the left, the text, aliases and default on the right."""
    name = f"  {action.option_strings[0]} {_metavar(action)}".rstrip()
    text = " ".join(text.replace("%%", "%").split())
    if text and text[-1] not in ".!?)":
        text += "."
    aliases = [option for option in action.option_strings[1:] if "-" not in option[2:]]
    if aliases:
        text += f" Also {', '.join(aliases)}."
    if "Default:" not in text:
        text += f" [{_default(action)}]"
    lines = textwrap.wrap(text.strip(), WIDTH - COLUMN, break_long_words=False, break_on_hyphens=False)
    lines = [" " * COLUMN + line for line in lines]
    if len(name) >= COLUMN:
        return [name, *lines]
    return [name + lines[0][len(name) :], *lines[1:]]


def _metavar(action: argparse.Action) -> str:
    if action.type is string_to_bool or action.nargs == 0:
        return ""
    choices = "{" + ",".join(map(str, action.choices or ())) + "}"
    if action.choices and len(f"  {action.option_strings[0]} {choices}") <= COLUMN - 2:
        return choices
    return {int: "N", float: "X"}.get(action.type, "TEXT") + (" ..." if action.nargs in ("+", "*") else "")


def _default(action: argparse.Action) -> str:
    value = action.default
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)
