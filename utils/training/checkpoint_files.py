"""Checkpoints on disk: they appear whole, are known when damaged, and go in one piece."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import xxhash
from safetensors import SafetensorError, safe_open


RECORD = "checkpoint.json"
UNFINISHED = ".unfinished"
READ_BYTES = 16 * 2**20


def unfinished(checkpoint: Path) -> Path:
    """Where a checkpoint lies while it is being written or removed."""
    return checkpoint.with_name(checkpoint.name + UNFINISHED)


def publish(checkpoint: Path, facts: dict) -> None:
    """Give what was written into `unfinished(checkpoint)`, and synced, its name, in one step.

    Beforehand it is recorded, in checkpoint.json, how large each file is and what its checksum is, beside the `facts`
    about the run. A checkpoint of this name that is there already, damaged or of an earlier run, is replaced.
    """
    folder = unfinished(checkpoint)
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3_64": _checksum(path)}
        for path in _files(folder)
        if path.name != RECORD
    }
    (folder / RECORD).write_text(json.dumps(facts | {"files": files}, indent=1))
    _sync_one(folder / RECORD)
    _sync_one(folder)
    replaced = _removed(checkpoint)
    if checkpoint.exists():
        checkpoint.rename(replaced)
    folder.rename(checkpoint)
    _sync_one(checkpoint.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync(folder: Path) -> None:
    """Wait until the files of `folder`, and their names, are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint. What is left of it, if this is cut short, is no checkpoint any more."""
    doomed = _removed(checkpoint)
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _removed(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.removed{UNFINISHED}")


def remove_leftovers(output_dir: str | Path) -> None:
    """Remove what a run that was killed left half-written or half-removed."""
    for folder in Path(output_dir).glob(f"checkpoint-*{UNFINISHED}"):
        shutil.rmtree(folder)


def read_metadata(checkpoint: str | Path) -> dict:
    """What `publish` was told about the run; empty for a checkpoint of an earlier version, which has no record."""
    path = Path(checkpoint) / RECORD
    return json.loads(path.read_text()) if path.is_file() else {}


def find_corruption(checkpoint: Path, read_all: bool = True) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None.

    Sizes and checksums are compared with the record. Reading all bytes finds what opening the files would not, such as
    a flipped bit in the weights, and is what loading does next anyway: 64-bit XXH3 takes less time than the disk. An
    older checkpoint has no record: then each file is opened, which finds those that were cut short.

    Args:
        read_all: also compare the checksums, and not the sizes alone.
    """
    try:
        record = read_metadata(checkpoint)
    except (OSError, ValueError):
        return f"{RECORD} is not readable"
    if not record:
        return next((f"{path.name} is not readable" for path in _files(checkpoint) if not _opens(path)), None)
    for name, expected in record["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes of {expected['bytes']:,}"
        try:
            if read_all and _checksum(path) != expected["xxh3_64"]:
                return f"{name} has been changed"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def describe_write_error(error: Exception) -> str | None:
    """In words, if writing a file failed, as on a full disk; None for an error of another kind.

    torch and safetensors wrap what the operating system said.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
        return " ".join(str(error).split())
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _checksum(path: Path) -> str:
    checksum = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            checksum.update(chunk)
    return checksum.hexdigest()


def _opens(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError):
        return False
    return path.suffix not in (".pt", ".pth") or zipfile.is_zipfile(path)
