"""The formats of text files, by the ends of their names, and their text as UTF-8."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import fsspec

from utils.errors import UsageError


FORMATS = {".txt": "text", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
READ_SIZE = 1 << 20  # bytes in memory at a time
BYTE_ORDER_MARK = "\ufeff"  # some editors write it at the beginning of a UTF-8 file; it is not part of the text


def format_of(file: str) -> str | None:
    return FORMATS.get(Path(_without_compression(file)).suffix)


def has_byte_order_mark(file: str) -> bool:
    with fsspec.open(file, "rb", compression="infer") as stream:
        return stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def read_text(file: str, offset: int = 0, end: int | None = None) -> Iterator[str]:
    """Read the lines that start at byte `offset` or later and before `end`, in strings of whole lines.

    Raises:
        UsageError: the text is not UTF-8.
    """
    with fsspec.open(file, "rb", compression="infer") as stream:
        if offset:
            stream.seek(offset - 1)
            offset += len(stream.readline()) - 1
        while (end is None or offset < end) and (
            data := stream.read(READ_SIZE if end is None else min(READ_SIZE, end - offset))
        ):
            if not data.endswith(b"\n"):
                data += stream.readline()
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                is_utf16 = offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
                reason = "UTF-16" if is_utf16 else error.reason
                place = f"not UTF-8 at byte {offset + error.start:,} ({reason})"
                raise UsageError(f"{file}: {place}; convert it, for example with iconv") from error
            yield text if offset else text.removeprefix(BYTE_ORDER_MARK)
            offset += len(data)


def _without_compression(file: str) -> str:
    return file[: -len(Path(file).suffix)] if Path(file).suffix in COMPRESSIONS else file
