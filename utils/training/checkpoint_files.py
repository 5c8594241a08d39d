"""Checkpoints on disk: they appear as a whole, corruption is detected, and they are removed as a whole."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import xxhash
from safetensors import SafetensorError, safe_open


METADATA_FILE = "checkpoint.json"
UNFINISHED = ".unfinished"
READ_BYTES = 16 * 2**20


def unfinished_path(checkpoint: Path) -> Path:
    """The folder of a checkpoint while it is being written."""
    return checkpoint.with_name(checkpoint.name + UNFINISHED)


def publish(checkpoint: Path, metadata: dict) -> None:
    """Rename `unfinished_path(checkpoint)`, whose files are written and synced, to `checkpoint`.

    First, checkpoint.json is written: the size and checksum of each file, and `metadata` about the run. An existing
    checkpoint of this name, corrupt or of an earlier run, is replaced.
    """
    folder = unfinished_path(checkpoint)
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3_64": _checksum(path)}
        for path in _list_files(folder)
        if path.name != METADATA_FILE
    }
    (folder / METADATA_FILE).write_text(json.dumps(metadata | {"files": files}, indent=1))
    _sync_one(folder / METADATA_FILE)
    _sync_one(folder)
    replaced = _removed_path(checkpoint)
    if checkpoint.exists():
        checkpoint.rename(replaced)
    folder.rename(checkpoint)
    _sync_one(checkpoint.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync(folder: Path) -> None:
    """Wait until the files of `folder`, and their names, are on disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint. It is renamed first: an interrupted removal leaves no half of a checkpoint."""
    doomed = _removed_path(checkpoint)
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _removed_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.removed{UNFINISHED}")


def remove_leftovers(output_dir: str | Path) -> None:
    """Remove the half-written or half-removed checkpoints of a run that was killed."""
    for folder in Path(output_dir).glob(f"checkpoint-*{UNFINISHED}"):
        shutil.rmtree(folder)


def read_metadata(checkpoint: str | Path) -> dict:
    """The metadata and file records from `publish`; empty for a checkpoint that has none."""
    path = Path(checkpoint) / METADATA_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def find_corruption(checkpoint: Path, read_all: bool = True) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None.

    Sizes and checksums are compared with checkpoint.json. The checksums also find a flipped bit in the weights, and
    cost little: 64-bit XXH3 is faster than the disk, and loading reads the same bytes next. Without checkpoint.json,
    each file is opened, which finds truncated ones.

    Args:
        read_all: compare the checksums too, not only the sizes.
    """
    try:
        metadata = read_metadata(checkpoint)
    except (OSError, ValueError):
        return f"{METADATA_FILE} is not readable"
    if not metadata:
        return next(
            (f"{path.name} is not readable" for path in _list_files(checkpoint) if not _can_be_opened(path)), None
        )
    for name, expected in metadata["files"].items():
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
    """Why a file could not be written, for example a full disk; None for an error of another kind.

    torch and safetensors wrap the operating system's error.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
        return " ".join(str(error).split())
    return None


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _checksum(path: Path) -> str:
    checksum = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            checksum.update(chunk)
    return checksum.hexdigest()


def _can_be_opened(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError):
        return False
    return path.suffix not in (".pt", ".pth") or zipfile.is_zipfile(path)
