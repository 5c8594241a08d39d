"""The cache folder: token stores and trained tokenizers, beside what `datasets` caches."""

import tempfile
from pathlib import Path

import datasets

from utils.errors import UsageError


def cache_folder(cache_dir: str | None) -> Path:
    """The folder of token stores and trained tokenizers; created if missing.

    Args:
        cache_dir: None for the cache of `datasets`.

    Raises:
        UsageError: nothing can be written to it.
    """
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / "language_modeling"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        way_out = "give another folder" if cache_dir else "give --cache_dir, or set HF_HOME or HF_DATASETS_CACHE"
        name = f"--cache_dir {cache_dir}" if cache_dir else f"the cache {datasets.config.HF_DATASETS_CACHE}"
        raise UsageError(f"{name}: the cache cannot be written to: {error.strerror}; {way_out}") from error
    return folder
