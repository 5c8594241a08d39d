"""Read documents from local files, plain or compressed: .txt with our own reader, other formats with `datasets`."""

import glob
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
from datasets import Dataset, IterableDataset

from utils.config.data_arguments import DataArguments
from utils.errors import UsageError
from utils.fingerprint import fingerprint


FORMATS = {".txt": "text", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
# The builder of `datasets` and its options. "utf8" instead of "utf-8", because with the latter the JSON builder skips
# the decoding that finds invalid bytes. Without keep_default_na=False, texts such as "NA" or "None" would be read as
# missing.
READERS = {
    "csv": ("csv", {"encoding": "utf8", "keep_default_na": False}),
    "tsv": ("csv", {"encoding": "utf8", "keep_default_na": False, "sep": "\t"}),
    "json": ("json", {"encoding": "utf8"}),
    "parquet": ("parquet", {}),
}
TEXT_READER_VERSION = "1"  # part of the cache key: increase it when TextDocuments reads differently
READ_SIZE = 1 << 20  # bytes in memory at a time, of a .txt file or of a streamed .json file
# Bytes of a .txt file in one shard of a stream. Resuming within a shard reads at most this much again.
PIECE_SIZE = 64 << 20


def find_files(flag: str, paths: list[str]) -> list[str]:
    """Expand paths, globs and folders into files. The files of a folder or glob are sorted by name.

    Raises:
        UsageError: a path that does not exist, that matches no file of a supported format, or files of more than one
            format.
    """
    files = []
    for path in map(str, map(Path.expanduser, map(Path, paths))):
        if Path(path).is_dir():
            found = [str(file) for file in sorted(Path(path).rglob("*")) if file.is_file() and _format_of(str(file))]
            if not found:
                raise UsageError(f"{flag} {path}: the folder contains no {' '.join(FORMATS)} files")
        elif Path(path).is_file():
            if not _format_of(path):
                raise UsageError(
                    f"{flag} {path}: the name must end in one of {' '.join(FORMATS)}, with or without "
                    f"{' '.join(COMPRESSIONS)}"
                )
            found = [path]
        else:
            found = [file for file in sorted(glob.glob(path, recursive=True)) if _format_of(file)]
            if not found:
                kind = "no file matches" if glob.has_magic(path) else "there is no such file or folder"
                raise UsageError(f"{flag} {path}: {kind}")
        files += found
    formats = {_format_of(file): file for file in files}
    if len(formats) > 1:
        raise UsageError(
            f"{flag}: all files must have the same format, unlike {' and '.join(sorted(formats.values()))}"
        )
    return files


def load_files(
    flag: str, files: list[str], data_args: DataArguments, cache_dir: str | None
) -> Dataset | IterableDataset:
    """Load files of one format, in order, as a dataset in the cache of `datasets`.

    With `--streaming`, return an IterableDataset that reads the files on demand. Its shards are the files, or pieces
    of large .txt files.

    Args:
        flag: the flag that names the files, for error messages.

    Raises:
        UsageError: text that is not UTF-8 (with file and byte), malformed JSON (with file and line), a file that
            cannot be decompressed, or no text at all.
    """
    file_format = _format_of(files[0])
    try:
        data_files = {"train": [glob.escape(file) for file in files]}  # otherwise `datasets` treats [1] as a pattern
        if file_format == "text":
            builder = TextDocuments(
                cache_dir=cache_dir,
                data_files=data_files,
                document_by=data_args.document_by,
                keep_linebreaks=data_args.keep_linebreaks,
                hash=TEXT_READER_VERSION,
            )
            if data_args.streaming:
                return builder.as_streaming_dataset(split="train")
            builder.download_and_prepare()
            return builder.as_dataset(split="train")
        builder_name, options = READERS[file_format]
        if data_args.streaming:
            if file_format == "json":
                options = options | {"chunksize": READ_SIZE}
            builder = datasets.load_dataset_builder(
                builder_name, data_files=data_files, cache_dir=cache_dir, **options
            )
            return builder.as_streaming_dataset(split="train")
        if file_format == "parquet":  # the other builders decompress files themselves
            download_config = datasets.DownloadConfig(cache_dir=cache_dir)
            data_files = {"train": datasets.DownloadManager(download_config=download_config).extract(files)}
        return datasets.load_dataset(builder_name, data_files=data_files, cache_dir=cache_dir, **options)["train"]
    except Exception as error:
        raise explain_read_error(error, flag, files) from error


def files_fingerprint(files: list[str], data_args: DataArguments) -> str:
    """Digest of what determines the documents in these files: names, sizes, modification times and reading options."""
    stats = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in map(os.path.abspath, files)]
    return fingerprint(
        version=TEXT_READER_VERSION,
        files=stats,
        document_by=data_args.document_by,
        keep_linebreaks=data_args.keep_linebreaks,
        piece_size=PIECE_SIZE,
    )


@dataclass
class TextDocumentsConfig(datasets.BuilderConfig):
    """How .txt files are split into documents; see DataArguments."""

    document_by: str = "line"
    keep_linebreaks: bool = True


class TextDocuments(datasets.ArrowBasedBuilder):
    """Reads .txt files as documents, one Arrow row each, cached by `datasets`.

    Lines end at "\\n" only. With `keep_linebreaks`, the concatenated documents equal the file byte for byte, however
    it is split. The text reader of `datasets` would also split at a lone carriage return, and would end a paragraph at
    every second newline.
    """

    BUILDER_CONFIG_CLASS = TextDocumentsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features({"text": datasets.Value("large_string")}))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"pieces": _split_files(files, self.config.document_by)})
            for split, files in self.config.data_files.items()
        ]

    def _generate_tables(self, pieces: list[tuple[str, int, int | None]]) -> Iterator[tuple[tuple, pa.Table]]:
        for index, piece in enumerate(pieces):
            for part, documents in enumerate(
                _read_documents(*piece, self.config.document_by, self.config.keep_linebreaks)
            ):
                yield (index, part), pa.table({"text": pa.array(documents, pa.large_string())})


def _split_files(files: list[str], document_by: str) -> list[tuple[str, int, int | None]]:
    """Split files into pieces that can be read independently: (file, first byte, end byte or None for the whole file).

    A file is split only if its documents are lines and it is not compressed. A piece contains the lines that start
    within its bytes.
    """
    pieces = []
    for file in files:
        if document_by == "line" and not file.endswith(COMPRESSIONS) and os.path.getsize(file) > PIECE_SIZE:
            pieces += [(file, start, start + PIECE_SIZE) for start in range(0, os.path.getsize(file), PIECE_SIZE)]
        else:
            pieces.append((file, 0, None))
    return pieces


def _read_documents(
    file: str, start: int, end: int | None, document_by: str, keep_linebreaks: bool
) -> Iterator[list[str]]:
    """The documents of a piece in order, in lists. Memory is bounded by READ_SIZE and the longest document."""
    rest = ""
    for text in _read_text(file, start, end):
        text = rest + text
        if document_by == "file":
            rest = text
            continue
        if document_by == "line":
            documents = text.split("\n")
            rest = documents.pop()
            documents = [line + "\n" for line in documents]
        else:  # blank lines belong to the document before them, so it ends only where the next text starts
            edges = [match.end() for match in re.finditer(r"(?<=\S)[^\S\n]*\n([^\S\n]*\n)+(?=[^\S\n]*\S)", text)]
            documents = [text[start:end] for start, end in zip([0, *edges], edges, strict=False)]
            rest = text[edges[-1] :] if edges else text
        yield [_strip_linebreaks(document, document_by, keep_linebreaks) for document in documents]
    if rest:
        yield [_strip_linebreaks(rest, document_by, keep_linebreaks)]


def _strip_linebreaks(document: str, document_by: str, keep_linebreaks: bool) -> str:
    if keep_linebreaks:
        return document
    return document.removesuffix("\n").removesuffix("\r") if document_by == "line" else document.strip("\r\n")


def _read_text(file: str, offset: int = 0, end: int | None = None) -> Iterator[str]:
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
                yield data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{file}: not UTF-8 at byte {offset + error.start:,} ({error.reason}); convert it, for example "
                    "with iconv"
                ) from error
            offset += len(data)


def explain_read_error(error: Exception, flag: str, files: list[str]) -> UsageError:
    """Find the file, and the place in it, that made `datasets` fail. Its own errors name neither."""
    file_format = _format_of(files[0])
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UsageError):
            return cause
        last, cause = cause, cause.__cause__
    is_empty = True
    try:
        for file in files if file_format != "parquet" else ():
            text = "".join(_read_text(file))
            is_empty &= not text.strip()
            if file_format == "json":
                _check_json(file, text)
    except UsageError as found:
        return found
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as found:
        return UsageError(f"{file}: cannot be decompressed: {found}")
    if file_format == "parquet":
        is_empty = all(Path(file).stat().st_size == 0 for file in files)
    if is_empty or "corresponds to no data" in str(last):
        return UsageError(f"{flag} {' '.join(files)}: the corpus is empty")
    return UsageError(f"{flag} {' '.join(files)}: cannot be read as {file_format}: {last}")


def _check_json(file: str, text: str) -> None:
    """Raise UsageError with the line of the first syntax error, if any, in a JSON or JSON Lines file."""
    is_one_value = text.lstrip().startswith("[") or not file.removesuffix(".gz").endswith(".jsonl")
    if is_one_value:
        try:
            json.loads(text)
            return
        except json.JSONDecodeError as error:
            if text.lstrip().startswith("["):
                raise UsageError(f"{file}: malformed JSON in line {error.lineno}: {error.msg}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{file}: malformed JSON in line {number}: {error.msg}") from error


def _format_of(file: str) -> str | None:
    return FORMATS.get(Path(_without_compression(file)).suffix)


def _without_compression(file: str) -> str:
    return file[: -len(Path(file).suffix)] if Path(file).suffix in COMPRESSIONS else file
