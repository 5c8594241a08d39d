"""A file of flags: the first word of a command line may name a JSON or YAML file with one `flag: value` per flag."""

import json
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UsageError


SUFFIXES = (".json", ".yaml", ".yml")


def find_flag_file(args: list[str]) -> Path | None:
    """The file of flags that a command line begins with, or None."""
    return Path(args[0]) if args and args[0].endswith(SUFFIXES) else None


def read_flag_file(path: Path) -> dict[str, Any]:
    """The flags in a file, without their dashes, and their values.

    Raises:
        UsageError: the file is missing, malformed or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read this file of flags: {error}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected one `flag: value` per flag")
    return values


def as_words(values: dict[str, Any]) -> list[str]:
    """The flags as words of a command line. A value of None leaves the flag out."""
    words = []
    for flag, value in values.items():
        if isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            is_json = isinstance(value, (bool, dict))
            words.append(f"--{flag}={json.dumps(value) if is_json else value}")
    return words
