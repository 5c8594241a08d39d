"""How a script is called: flags, or one .json/.yaml file and flags over it; a user's mistake ends in one line."""

import argparse
import atexit
import dataclasses
import difflib
import functools
import gc
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from utils.transformers_lines import FLAGS_OF_THE_OTHER_LINE


class UsageError(ValueError):
    """A mistake that the user can mend. The message is one line that names the flag or file and the way out."""


def entry_point(main: Callable) -> Callable:
    """Make `main(args)` a script's way in: a `UsageError` ends in one line and exit code 2, without a traceback.

    Under torchrun every process finds the same mistake; only the first of each machine prints it.
    """

    @functools.wraps(main)
    def run(args: list[str] | None = None):
        try:
            result = main(args)
        except UsageError as error:
            if int(os.environ.get("LOCAL_RANK", 0)) == 0:
                message = " ".join(str(error).split())
                print(f"{Path(inspect.getfile(main)).name}: error: {message}", file=sys.stderr)
            raise SystemExit(2) from error
        atexit.register(_end_process_group)  # not after an error: other processes may be stuck, this one is to leave
        return result

    return run


def _end_process_group() -> None:
    """Leave the process group, if there is one, and wait until its threads have ended.

    A thread of gloo that still holds a tensor while the interpreter shuts down aborts the process, after a run in
    which all went well (pytorch issue 190489). The threads end with the last reference to the group, and the models
    that refer to it are in cycles.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def parse_arguments(*dataclass_types: type, args: list[str] | None = None) -> tuple:
    """Read the command line into one instance of each dataclass.

    Args:
        dataclass_types: dataclasses whose fields are the flags. The one that has a field `run_args` (not a flag)
            gets there what was given, as `{flag: value}`, without the flags left at their defaults.
        args: the words after the script's name; None means `sys.argv[1:]`. A first word that ends in .json, .yaml
            or .yml is a file of flags; flags after it win over the file.

    Raises:
        UsageError: an unknown flag or key (with the nearest real one), a value of the wrong type, a file that is
            missing or malformed, or whatever a dataclass refuses in its `__post_init__`.
    """
    _set_up_logging()
    parser = _FlagParser(dataclass_types, allow_abbrev=False)
    args = list(sys.argv[1:] if args is None else args)
    if args and args[0].endswith((".json", ".yaml", ".yml")):
        args = _flags_in_file(Path(args[0]), parser) + args[1:]
    given = parser.given(args)
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            args, return_remaining_strings=True, look_for_args_file=False
        )
    except UsageError:
        raise
    except json.JSONDecodeError as error:
        flag = next((flag for flag, value in given.items() if value == error.doc), "")
        raise UsageError(f"--{flag} {error.doc}: not valid JSON: {error.msg}") from error
    except (ValueError, OSError, ImportError) as error:  # what transformers' TrainingArguments refuses
        raise UsageError(str(error)) from error
    assert not unknown  # parser.given() has refused them
    for arguments in parsed:
        if any(field.name == "run_args" for field in dataclasses.fields(arguments)):
            arguments.run_args = given
    return tuple(parsed)


class _FlagParser(HfArgumentParser):
    """HfArgumentParser that raises UsageError instead of printing its usage, and takes `--flag` for a bool | None."""

    def __init__(self, dataclass_types: tuple[type, ...], **kwargs):
        super().__init__(dataclass_types, **kwargs)
        for action in self._actions:
            if action.type is string_to_bool and action.nargs is None:
                action.nargs, action.const = "?", True

    def error(self, message: str):
        raise UsageError(message)

    def given(self, args: list[str]) -> dict:
        """The flags in `args` with their values, those alone."""
        defaults = [(action, action.default, action.required) for action in self._actions]
        for action in self._actions:
            action.default, action.required = argparse.SUPPRESS, False
        namespace, unknown = self.parse_known_args(args)
        for action, default, required in defaults:
            action.default, action.required = default, required
        if unknown:
            raise UsageError(f"unknown flag {unknown[0]}{self.nearest(unknown[0])}")
        return vars(namespace)

    def nearest(self, flag: str) -> str:
        """` (did you mean --real_flag?)`, or what to do about a flag that only the other line of transformers has."""
        name = flag.split("=")[0]
        if name in FLAGS_OF_THE_OTHER_LINE:
            return f" in transformers {transformers.__version__}: {FLAGS_OF_THE_OTHER_LINE[name]}"
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return f" (did you mean {close[0]}?)" if close else " (--help lists the flags)"


def _flags_in_file(path: Path, parser: _FlagParser) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read this file of flags: {error}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected one `flag: value` for each flag")
    flags = []
    for key, value in values.items():
        option = f"--{key}"
        if option not in parser._option_string_actions:
            raise UsageError(f"{path}: unknown flag {key}{parser.nearest(option)}")
        if isinstance(value, list):
            flags += [option, *map(str, value)]
        elif value is not None:
            is_json = isinstance(value, (bool, dict))
            flags.append(f"{option}={json.dumps(value) if is_json else value}")
    return flags


def _set_up_logging() -> None:
    """Our lines from INFO on by the first process, errors alone by the others; the libraries' from WARNING on."""
    logging.basicConfig(format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    is_main_process = int(os.environ.get("RANK", 0)) == 0
    logging.getLogger("utils").setLevel(logging.INFO if is_main_process else logging.ERROR)
    logging.getLogger("utils.progress").setLevel(logging.INFO)  # of whichever process does the work for all
    if not is_main_process:
        logging.getLogger().setLevel(logging.ERROR)
        transformers.logging.set_verbosity_error()
