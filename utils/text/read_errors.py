"""Say which file, and which place in it, cannot be read, and why: the errors of `datasets` name neither."""

import errno
import lzma
import zlib
from pathlib import Path

from utils.errors import UsageError
from utils.text.csv_files import SEPARATORS, read_rows
from utils.text.file_formats import format_of, read_text
from utils.text.json_files import check_json


def explain_read_error(error: Exception, flag: str, files: list[str]) -> UsageError:
    """Find the file, and the place in it, that made `datasets` fail."""
    file_format = format_of(files[0])
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UsageError):
            return cause
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return UsageError(f"the cache is full: {cause}; make room, or give another --cache_dir")
        last, cause = cause, cause.__cause__
    is_empty = True
    try:
        for file in files if file_format != "parquet" else ():
            text = "".join(read_text(file))
            is_empty &= not text.strip()
            if file_format == "json":
                check_json(file, text)
            if file_format in SEPARATORS:
                sum(read_rows(file, SEPARATORS[file_format]))
    except UsageError as found:
        return found
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as found:
        if isinstance(found, OSError) and found.errno is not None:
            return UsageError(f"{file}: cannot be read: {found.strerror}")
        return UsageError(f"{file}: cannot be decompressed: {found}")
    if file_format == "parquet":
        is_empty = all(Path(file).stat().st_size == 0 for file in files)
    if is_empty or "corresponds to no data" in str(last):
        return UsageError(f"{flag} {' '.join(files)}: the corpus is empty")
    return UsageError(f"{flag} {' '.join(files)}: cannot be read as {file_format}: {last}")
