"""What decides the content of a cache, as one string, so that a cache is never read for something else."""

import hashlib
import inspect
import json
import site
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.fingerprint import Hasher


def fingerprint(**parts: Any) -> str:
    """A hexadecimal digest of `parts`, whose values are what JSON holds."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def code_fingerprint(function: Callable) -> str:
    """A digest of what a Python function computes: its code, its defaults, and what it uses of its module.

    `datasets` hashes a function that lives in an importable module by its name, so that an edited one finds the rows
    of the old one (huggingface/datasets#3297). Here the code counts, followed through the functions, classes and
    modules that are ours; what is installed counts by its name.
    """
    return hashlib.sha256("\n".join(_describe(function, set())).encode()).hexdigest()[:32]


def _describe(value: Any, seen: set[int]) -> list[str]:
    if id(value) in seen:
        return ["seen"]
    seen.add(id(value))
    if isinstance(value, types.ModuleType):
        return [value.__name__, "" if _is_installed(value) else Path(inspect.getfile(value)).read_text()]
    if isinstance(value, (types.FunctionType, type)) and _is_installed(value):
        return [f"{value.__module__}.{value.__qualname__}"]
    if isinstance(value, type):
        return [inspect.getsource(value)]
    if not isinstance(value, types.FunctionType):
        return [Hasher.hash(value)]
    closure = [cell.cell_contents for cell in value.__closure__ or ()]
    parts = _describe_code(value.__code__)
    for used in (value.__defaults__, value.__kwdefaults__, *closure):
        parts += _describe(used, seen)
    for name in _names(value.__code__):
        if name in value.__globals__:
            parts += [name, *_describe(value.__globals__[name], seen)]
    return parts


def _describe_code(code: types.CodeType) -> list[str]:
    parts = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
    for constant in code.co_consts:
        parts += _describe_code(constant) if isinstance(constant, types.CodeType) else [repr(constant)]
    return parts


def _names(code: types.CodeType) -> list[str]:
    nested = [name for inner in code.co_consts if isinstance(inner, types.CodeType) for name in _names(inner)]
    return [*code.co_names, *nested]


def _is_installed(value: Any) -> bool:
    try:
        file = Path(inspect.getfile(value)).resolve()
    except TypeError:  # built into the interpreter
        return True
    folders = [*sysconfig.get_paths().values(), *site.getsitepackages()]
    return any(file.is_relative_to(Path(folder).resolve()) for folder in folders if folder)
