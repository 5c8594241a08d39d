"""The command line: flags, optionally after a file of flags, which they override."""

import argparse
import difflib
import json
import logging
import re
import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from utils.compat import FLAGS_OF_OTHER_VERSION
from utils.config.flag_file import as_words, find_flag_file, read_flag_file
from utils.config.flag_names import common_flag
from utils.config.help import full_help, short_help
from utils.config.ineffective_flags import check_effects
from utils.environment import launched_processes, rank
from utils.errors import UsageError
from utils.launch import launch


logger = logging.getLogger(__name__)


# Flags whose values appear in nothing that is written or printed.
SECRET_FLAGS = ("token", "hub_token", "push_to_hub_token")

NO_TPU_FLAG = (
    "--tpu was TensorFlow's: on a TPU machine with torch_xla, start this script with accelerate launch --tpu "
    "--num_processes 8, or with another spawner of _mp_fn; leave the flag out"
)


class RunArguments(dict):
    """The flags that were given, as `{flag: value}`, without access tokens; run_args.yaml holds them.

    Attributes:
        defaults: the value that each flag has if it is not given.
    """

    def __init__(self, given: dict, defaults: dict):
        super().__init__(given)
        self.defaults = defaults


def parse_arguments(*dataclass_types: type, args: list[str] | None = None, defaults: dict | None = None) -> tuple:
    """Read the command line into one instance of each dataclass.

    With --help or --help_all, print the flags and exit with code 0. If the run needs several processes
    (`--num_processes`, by default one per GPU) and no launcher has started them, start them with the same command
    line, wait for them and exit with their code.

    Args:
        dataclass_types: dataclasses whose fields are the flags.
        args: the words after the script's name; None means `sys.argv[1:]`. A first word that ends in .json, .yaml
            or .yml is a file of flags, which the flags after it override.
        defaults: the flags whose default in this script differs from that in their dataclass, with that default.

    Returns:
        An instance of each dataclass, in order, and then the RunArguments.

    Raises:
        UsageError: an unknown flag or key (with the closest one that exists), a value of the wrong type, a file that
            is missing or malformed, or whatever a dataclass refuses in its `__post_init__`.
    """
    _set_up_logging()
    parser = _FlagParser(dataclass_types, defaults or {})
    is_script = args is None  # as opposed to a call of main(args) in a program
    args = list(sys.argv[1:] if args is None else args)
    _print_help_if_asked(parser, dataclass_types, args)
    path = find_flag_file(args)
    if path is not None:
        args = _flags_in_file(path, parser) + args[1:]
    given = parser.given(args)
    num_processes = _processes_to_start(given, is_script)
    if num_processes > 1:
        logger.info("starting %d processes%s", num_processes, "" if _on_cpu(given) else ", one per GPU")
        raise SystemExit(launch(sys.argv, num_processes))
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            args, return_remaining_strings=True, look_for_args_file=False
        )
    except UsageError:
        raise
    except json.JSONDecodeError as error:
        flag = next((flag for flag, value in given.items() if value == error.doc), "")
        raise UsageError(f"--{flag} {error.doc}: not valid JSON: {error.msg}") from error
    except (ValueError, OSError, ImportError) as error:  # from transformers' TrainingArguments
        raise UsageError(str(error)) from error
    assert not unknown  # refused by parser.given()
    given = {flag: _plain(value) for flag, value in given.items()}
    run_args = RunArguments(
        {flag: value for flag, value in given.items() if flag not in SECRET_FLAGS},
        defaults={flag: _plain(value) for flag, value in parser.defaults().items()},
    )
    values = {flag: value for dataclass in parsed for flag, value in vars(dataclass).items()}
    check_effects(given, run_args.defaults, SimpleNamespace(**values))
    return *parsed, run_args


def _plain(value: Any) -> Any:
    """The value as YAML can hold it: the name of a member of an Enum."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.value if isinstance(value, Enum) else value


def _print_help_if_asked(parser: "_FlagParser", dataclass_types: tuple[type, ...], args: list[str]) -> None:
    is_full = "--help_all" in args or "--help-all" in args
    if not is_full and "--help" not in args and "-h" not in args:
        return
    if rank() == 0:
        print(full_help(parser, dataclass_types) if is_full else short_help(parser, dataclass_types))
    raise SystemExit(0)


def _processes_to_start(given: dict, is_script: bool) -> int:
    """The number of processes to start in place of this one; 1 if this one does the work itself."""
    asked_for = given.get("num_processes")
    if asked_for is not None and asked_for < 1:
        raise UsageError(f"--num_processes {asked_for}: give 1 or more")
    started = launched_processes()
    if started is not None:
        if asked_for not in (None, started):
            raise UsageError(f"--num_processes {asked_for}, but the launcher has started {started}: leave it out")
        return 1
    if not is_script:
        if (asked_for or 1) > 1:
            raise UsageError(f"--num_processes {asked_for} works on the command line, not in a call of main(args)")
        return 1
    if given.get("preprocess_only"):  # a single process uses all cores
        return 1
    if _on_cpu(given):
        return asked_for or 1
    num_gpus = torch.accelerator.device_count()
    if (asked_for or 1) > num_gpus:
        raise UsageError(
            f"--num_processes {asked_for}: there are {num_gpus} GPUs here; give at most {num_gpus}, or --use_cpu"
        )
    return asked_for or num_gpus


def _on_cpu(given: dict) -> bool:
    return not torch.accelerator.is_available() or any(given.get(flag) for flag in ("use_cpu", "no_cuda"))


class _FlagParser(HfArgumentParser):
    """HfArgumentParser that raises UsageError instead of printing its usage, and takes `--flag` for a bool | None."""

    def __init__(self, dataclass_types: tuple[type, ...], defaults: dict):
        super().__init__(dataclass_types, allow_abbrev=False, add_help=False)
        for action in self._actions:
            action.default = defaults.get(action.dest, action.default)  # after set_defaults, they would count as given
            if action.type is string_to_bool and action.nargs is None:
                action.nargs, action.const = "?", True

    def error(self, message: str):
        """argparse calls this; its messages begin with all names of a flag, of which the first one is enough."""
        raise UsageError(re.sub(r"^argument (--[\w-]+)[^\s:]*: ", r"\1: ", message))

    def given(self, args: list[str]) -> dict:
        """The flags that `args` contains, with their values."""
        defaults = [(action, action.default, action.required) for action in self._actions]
        for action in self._actions:
            action.default, action.required = argparse.SUPPRESS, False
        namespace, unknown = self.parse_known_args(args)
        for action, default, required in defaults:
            action.default, action.required = default, required
        if unknown and unknown[0].split("=")[0] == "--tpu":
            raise UsageError(NO_TPU_FLAG)
        if unknown:
            raise UsageError(f"unknown flag {unknown[0]}{self.nearest(unknown[0])}")
        return vars(namespace)

    def defaults(self) -> dict:
        """The default of every flag."""
        return {action.dest: action.default for action in self._actions}

    def nearest(self, flag: str) -> str:
        """` (did you mean --real_flag?)`, or what replaces a flag that only the other transformers version has."""
        name = flag.split("=")[0]
        if name in FLAGS_OF_OTHER_VERSION:
            return f" in transformers {transformers.__version__}: {FLAGS_OF_OTHER_VERSION[name]}"
        known = f"--{common_flag(name.lstrip('-').replace('-', '_'))}"
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        if known in self._option_string_actions:
            close = [known]
        return f" (did you mean {close[0]}?)" if close else " (--help_all lists all flags)"


def _flags_in_file(path: Path, parser: _FlagParser) -> list[str]:
    values = read_flag_file(path)
    names = {}
    for flag in values:
        if f"--{flag}" not in parser._option_string_actions:
            raise UsageError(f"{path}: unknown flag {flag}{parser.nearest(f'--{flag}')}")
        other = names.setdefault(parser._option_string_actions[f"--{flag}"], flag)
        if other != flag:
            raise UsageError(f"{path}: {other} and {flag} are the same flag: leave out one of them")
    return as_words(values)


def _set_up_logging() -> None:
    """Log from INFO (our messages) or WARNING (the libraries') in the first process, only errors in the others."""
    logging.basicConfig(format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    is_main_process = rank() == 0
    logging.getLogger("utils").setLevel(logging.INFO if is_main_process else logging.ERROR)
    logging.getLogger("utils.progress").setLevel(logging.INFO)  # from whichever process does the work for all
    if not is_main_process:
        logging.getLogger().setLevel(logging.ERROR)
        transformers.logging.set_verbosity_error()
