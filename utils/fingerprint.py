"""Fingerprints: digests of everything that determines a cached result, so that a cache is never reused wrongly."""

import hashlib
import inspect
import json
import site
import sysconfig
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datasets.fingerprint import Hasher


CHUNK = 2**24  # elements of an array that are read at once


def fingerprint(**parts: Any) -> str:
    """A digest of `parts`, 32 hexadecimal digits. The values must be serializable as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def checksum(*arrays: np.ndarray) -> str:
    """A digest of the contents of arrays of one dimension, 16 hexadecimal digits.

    64-bit XXH3 reads gigabytes a second; arrays may be memory-mapped.
    """
    places = ((array, start) for array in arrays for start in range(0, len(array), CHUNK))
    return checksum_of(np.ascontiguousarray(array[start : start + CHUNK]) for array, start in places)


def checksum_of(chunks: Iterable[bytes | np.ndarray]) -> str:
    """A digest of bytes that arrive in chunks: equal to that of an array with the same bytes."""
    digest = xxhash.xxh3_64()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def code_fingerprint(function: Callable) -> str:
    """A digest of what a Python function computes: its code, its defaults and the globals that it uses.

    `datasets` hashes a function from an importable module by its name, so an edited function would be given the cached
    rows of the old one (huggingface/datasets#3297). This digest covers the code itself and follows it into functions,
    classes and modules that are not installed packages. Installed ones are identified by name.
    """
    return hashlib.sha256("\n".join(_describe(function, set())).encode()).hexdigest()[:32]


def _describe(value: Any, seen: set[int]) -> list[str]:
    """The strings that the digest covers. `seen` holds the ids of values already described, since code can recurse."""
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
    for name in _used_names(value.__code__):
        if name in value.__globals__:
            parts += [name, *_describe(value.__globals__[name], seen)]
    return parts


def _describe_code(code: types.CodeType) -> list[str]:
    parts = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
    for constant in code.co_consts:
        parts += _describe_code(constant) if isinstance(constant, types.CodeType) else [repr(constant)]
    return parts


def _used_names(code: types.CodeType) -> list[str]:
    nested = [name for inner in code.co_consts if isinstance(inner, types.CodeType) for name in _used_names(inner)]
    return [*code.co_names, *nested]


def _is_installed(value: Any) -> bool:
    try:
        file = Path(inspect.getfile(value)).resolve()
    except TypeError:  # built into the interpreter
        return True
    folders = [*sysconfig.get_paths().values(), *site.getsitepackages()]
    return any(file.is_relative_to(Path(folder).resolve()) for folder in folders if folder)
