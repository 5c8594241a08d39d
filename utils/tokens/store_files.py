"""Folders of arrays on disk, as of a token store: written whole or not at all, and checked when they are used."""

import contextlib
import errno
import functools
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.errors import UsageError
from utils.fingerprint import CHUNK, checksum, checksum_of


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # changes when the machine starts; Linux only


class CorruptFolder(Exception):
    """A folder is not as it was written. The message names the file and what is wrong."""


@contextlib.contextmanager
def new_folder(folder: Path, metadata_name: str) -> Iterator[tuple[Path, dict]]:
    """Replace `folder` by a new one: the block fills the folder that it is given, and the dict of its metadata.

    No process ever sees an incomplete folder. The metadata also gets the size and the checksum of each file.

    Raises:
        UsageError: the disk is full.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # from a job that died
    unfinished.mkdir(parents=True)
    metadata: dict = {}
    try:
        yield unfinished, metadata
        metadata["files"] = {
            file.name: [file.stat().st_size, _checksum(file)] for file in sorted(unfinished.iterdir())
        }
        metadata["checksum_of_metadata"] = _digest(metadata)
        (unfinished / metadata_name).write_text(json.dumps(metadata, indent=2))
    except BaseException as error:
        shutil.rmtree(unfinished)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(f"the cache is full: {error}; make room, or give another --cache_dir") from error
        raise
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    _remember_as_intact(folder, metadata)


def read_folder(folder: Path, metadata_name: str) -> dict | None:
    """The metadata of a folder; None if there is no such folder.

    The sizes of its files are checked each time. Their checksums are checked when the files, or the machine, are
    others than at the last time; the folder remembers that in a file for each machine.

    Raises:
        CorruptFolder: a file is missing, has another size or another checksum, or the metadata is damaged.
    """
    if not folder.exists():
        return None
    try:
        metadata = json.loads((folder / metadata_name).read_text())
        expected = metadata.pop("checksum_of_metadata")
        is_intact = _digest(metadata) == expected
    except (OSError, ValueError, KeyError, AttributeError):
        is_intact = False
    if not is_intact:
        raise CorruptFolder(f"{folder / metadata_name} is damaged")
    for name, (size, _) in metadata["files"].items():
        if not (folder / name).exists():
            raise CorruptFolder(f"{folder / name} is missing")
        if (folder / name).stat().st_size != size:
            raise CorruptFolder(f"{folder / name} has {(folder / name).stat().st_size:,} bytes instead of {size:,}")
    if not _is_known_as_intact(folder, metadata):
        for name, (_, digest) in metadata["files"].items():
            if _checksum(folder / name) != digest:
                raise CorruptFolder(f"{folder / name} is not as it was written: its checksum differs")
        _remember_as_intact(folder, metadata)
    return metadata


def memory_map(file: Path, dtype: str) -> np.ndarray:
    """An array of one dimension on a file."""
    if file.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r")


def read_chunks(file: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes of a file. Unlike those of a mapped file, they do not stay in the memory of the process."""
    end = file.stat().st_size if end is None else end
    with open(file, "rb", buffering=0) as stream:
        stream.seek(start)
        while start < end and (chunk := stream.read(min(CHUNK, end - start))):
            yield chunk
            start += len(chunk)


def _checksum(file: Path) -> str:
    return checksum_of(read_chunks(file))


def _digest(metadata: dict) -> str:
    return checksum(np.frombuffer(json.dumps(metadata, sort_keys=True).encode(), dtype=np.uint8))


def _is_known_as_intact(folder: Path, metadata: dict) -> bool:
    try:
        return json.loads(_memory_of(folder).read_text()) == _state(folder, metadata)
    except (OSError, ValueError):
        return False


def _remember_as_intact(folder: Path, metadata: dict) -> None:
    memory = _memory_of(folder)
    unfinished = memory.with_name(f"{memory.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(_state(folder, metadata)))
        unfinished.rename(memory)
    except OSError:  # a cache that this user may only read is checked each time
        pass


def _state(folder: Path, metadata: dict) -> dict:
    """What changes when a file is written, or replaced, or the machine starts anew."""
    stats = {name: (folder / name).stat() for name in metadata["files"]}
    files = {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats.items()}
    return {"boot": BOOT_ID.read_text() if BOOT_ID.exists() else "", "files": files}


def _memory_of(folder: Path) -> Path:
    return folder / f"intact-{_host()}"


@functools.cache
def _host() -> str:
    return socket.gethostname()
