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
        with_underscores = f"--{name[2:].replace('-', '_')}"
        typed[PRIMARY_NAMES.get(with_underscores, with_underscores)] = name
    return typed
