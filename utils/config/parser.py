"""The command line: flags, or one .json or .yaml file and flags that override it."""

import argparse
import difflib
import json
import logging
import os
import sys
from pathlib import Path

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from utils.compat import FLAGS_OF_OTHER_VERSION
from utils.errors import UsageError
from utils.launch import launch, launched_processes


logger = logging.getLogger(__name__)


NO_TPU_FLAG = (
    "--tpu was TensorFlow's: on a TPU machine with torch_xla, accelerate launch --tpu --num_processes 8 (or another "
    "spawner of _mp_fn) runs this script; leave the flag out"
)


SECRET_FLAGS = ("token", "hub_token", "push_to_hub_token")  # flags whose values are kept out of all that is written


def parse_arguments(*dataclass_types: type, args: list[str] | None = None, defaults: dict | None = None) -> tuple:
    """Read the command line into one instance of each dataclass.

    If the command line asks for several processes (`--num_processes`, by default one for each GPU) and no launcher
    has started them, this process starts them with the same command line, waits for them and exits with their code.

    Args:
        dataclass_types: dataclasses whose fields are the flags.
        args: the words after the script's name; None means `sys.argv[1:]`. A first word that ends in .json, .yaml
            or .yml is a file of flags; flags after it win over the file.
        defaults: flags whose default in this script differs from that of their dataclass.

    Returns:
        An instance of each dataclass, in order, and last the flags that were given, as `{flag: value}`: without those
        left at their defaults, and without access tokens. Written to run_args.yaml, they repeat the run.

    Raises:
        UsageError: an unknown flag or key (with the nearest real one), a value of the wrong type, a file that is
            missing or malformed, or whatever a dataclass refuses in its `__post_init__`.
    """
    _set_up_logging()
    parser = _FlagParser(dataclass_types, allow_abbrev=False)
    parser.set_defaults(**(defaults or {}))
    is_script = args is None  # and not a function that a program calls, which is to return
    args = list(sys.argv[1:] if args is None else args)
    if args and args[0].endswith((".json", ".yaml", ".yml")):
        args = _flags_in_file(Path(args[0]), parser) + args[1:]
    given = parser.given(args)
    num_processes = _processes_to_start(given, is_script)
    if num_processes > 1:
        logger.info("starting %d processes%s", num_processes, "" if _on_cpu(given) else ", one for each GPU")
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
    except (ValueError, OSError, ImportError) as error:  # what transformers' TrainingArguments refuses
        raise UsageError(str(error)) from error
    assert not unknown  # parser.given() has refused them
    run_args = {flag: value for flag, value in given.items() if flag not in SECRET_FLAGS}
    return *parsed, run_args


def _processes_to_start(given: dict, is_script: bool) -> int:
    """How many processes this one is to start in its place; 1 if it is to do the work itself."""
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
    if given.get("preprocess_only"):  # which uses all cores by itself
        return 1
    if _on_cpu(given):
        return asked_for or 1
    num_gpus = torch.accelerator.device_count()
    if (asked_for or 1) > num_gpus:
        raise UsageError(f"--num_processes {asked_for}: there are {num_gpus} GPUs here; give less, or --use_cpu")
    return asked_for or num_gpus


def _on_cpu(given: dict) -> bool:
    return not torch.accelerator.is_available() or any(given.get(flag) for flag in ("use_cpu", "no_cuda"))


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
        if unknown and unknown[0].split("=")[0] == "--tpu":
            raise UsageError(NO_TPU_FLAG)
        if unknown:
            raise UsageError(f"unknown flag {unknown[0]}{self.nearest(unknown[0])}")
        return vars(namespace)

    def nearest(self, flag: str) -> str:
        """` (did you mean --real_flag?)`, or what to do about a flag that only the other line of transformers has."""
        name = flag.split("=")[0]
        if name in FLAGS_OF_OTHER_VERSION:
            return f" in transformers {transformers.__version__}: {FLAGS_OF_OTHER_VERSION[name]}"
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
