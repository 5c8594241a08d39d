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
        UsageError: the file is missing, malformed, not a mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read this file of flags: {error}") from error
    try:
        if path.suffix == ".json":
            values = json.loads(text, object_pairs_hook=_without_duplicates)
        else:
            values = yaml.load(text, Loader=_Loader)
    except (ValueError, yaml.YAMLError) as error:
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


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key that appears twice is an error, as YAML demands."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        _without_duplicates([(key.value, value) for key, value in node.value])
        return super().construct_mapping(node, deep)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} appears {keys.count(key)} times")
    return dict(pairs)
