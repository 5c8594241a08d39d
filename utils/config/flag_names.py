"""The names of flags: some have several, and an error message uses the one that the user typed."""

import contextlib
import re
from dataclasses import fields

from utils.config.data_arguments import DataArguments
from utils.config.flag_file import find_flag_file, read_flag_file
from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError


# From each alias to the name under which the code knows the flag: {"--max_seq_length": "--block_size", ...}.
PRIMARY_NAMES = {
    alias: f"--{flag.name}"
    for arguments in (ModelArguments, DataArguments)
    for flag in fields(arguments)
    for alias in flag.metadata.get("aliases", ())
}

# What people type for a flag, from other programs; where several flags are meant, the one for training.
COMMON_NAMES = {
    "model_name_or_path": "model model_name model_path pretrained_model",
    "tokenizer_name": "tokenizer tokenizer_path tokenizer_name_or_path",
    "config_name": "config config_path model_config",
    "train_file": "data data_file train_data train_path train_files",
    "validation_file": "valid val valid_file val_file eval_file test_file eval_data validation_data",
    "validation_split_percentage": "val_split validation_split split_percentage",
    "dataset_name": "dataset datasets",
    "text_column": "text_field text_key column text_columns",
    "output_dir": "output out out_dir save_dir output_path",
    "block_size": "max_length max_len seq_len seq_length sequence_length max_seq_len context_length context_size",
    "learning_rate": "lr max_lr",
    "lr_scheduler_type": "lr_scheduler scheduler lr_schedule schedule scheduler_type",
    "warmup_steps": "warmup num_warmup_steps warmup_iters",
    "per_device_train_batch_size": "batch_size bs train_batch_size micro_batch_size batch per_device_batch_size",
    "per_device_eval_batch_size": "eval_batch_size eval_bs test_batch_size",
    "gradient_accumulation_steps": "grad_accum gradient_accumulation accumulation_steps grad_acc_steps",
    "num_train_epochs": "epochs num_epochs n_epochs epoch max_epochs train_epochs",
    "max_steps": "steps train_steps num_steps max_iters iterations num_train_steps",
    "max_grad_norm": "grad_clip clip_grad gradient_clipping clip_grad_norm grad_norm",
    "weight_decay": "wd",
    "optim": "optimizer opt",
    "logging_steps": "log_steps log_interval log_every log_freq",
    "eval_steps": "eval_interval eval_every eval_freq",
    "save_steps": "save_interval save_every save_freq",
    "dataloader_num_workers": "workers num_workers n_workers",
    "num_processes": "gpus num_gpus n_gpus nproc nproc_per_node devices",
    "resume_from_checkpoint": "resume resume_from",
    "overwrite_output_dir": "overwrite force",
    "bf16": "mixed_precision precision amp",
    "use_cpu": "cpu",
    "train_adapter": "adapter lora use_lora peft",
    "mlm_probability": "mask_prob mlm_prob mask_probability masking_probability",
}


def common_flag(name: str) -> str | None:
    """The flag that is probably meant by a name without dashes, such as lr; None if it is none of COMMON_NAMES."""
    return next((flag for flag, names in COMMON_NAMES.items() if name in names.split()), None)


def with_flag_file(message: str, args: list[str]) -> str:
    """The message with the name of the file of flags before it, if it is about a value that only the file gives.

    Args:
        message: begins with the flag or with its value, if it is about either.
        args: as for `with_typed_names`.
    """
    path = find_flag_file(args)
    try:
        values = {} if path is None else read_flag_file(path)
    except UsageError:  # which names the file
        return message
    typed = _typed_names(args[1:])
    for flag, value in values.items():
        beginning = "|".join(map(re.escape, (f"--{flag}", flag, f"{value} is not")))
        if _primary_name(f"--{flag}") not in typed and re.match(rf"({beginning})(?![\w-])", message):
            return f"{path}: {message}"
    return message


def with_typed_names(message: str, args: list[str]) -> str:
    """The message with each flag named as in `args`, for example --max_seq_length instead of --block_size.

    Args:
        args: the words after the script's name; the flags of a file count too.
    """
    for primary, typed in _typed_names(args).items():
        names = [primary, *(alias for alias, name in PRIMARY_NAMES.items() if name == primary)]
        pattern = rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?![\w-])"
        message = re.sub(pattern, typed, message)
    return message


def _typed_names(args: list[str]) -> dict[str, str]:
    """From the primary name of each flag in `args` to the name that was typed, the last one if there are several."""
    names = []
    path = find_flag_file(args)
    if path is not None:
        with contextlib.suppress(UsageError):  # then that is the error to report
            names = [f"--{flag}" for flag in read_flag_file(path)]
    names += [word.split("=")[0] for word in args if word.startswith("--")]
    typed = {}
    for name in names:
        typed[_primary_name(name)] = name
    return typed


def _primary_name(name: str) -> str:
    with_underscores = f"--{name[2:].replace('-', '_')}"
    return PRIMARY_NAMES.get(with_underscores, with_underscores)
