"""Local files -> documents: .txt by our own reader, the other formats by `datasets`; plain or compressed."""

import glob
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
from datasets import Dataset

from utils.arguments import DataArguments
from utils.command_line import UsageError


FORMATS = {".txt": "text", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
# The builder of `datasets` and its options. "utf8" and not "utf-8", for which the JSON builder skips the decoding that
# finds wrong bytes; without keep_default_na=False a text such as "NA" or "None" would be read as no text.
READERS = {
    "csv": ("csv", {"encoding": "utf8", "keep_default_na": False}),
    "tsv": ("csv", {"encoding": "utf8", "keep_default_na": False, "sep": "\t"}),
    "json": ("json", {"encoding": "utf8"}),
    "parquet": ("parquet", {}),
}
TEXT_READER_VERSION = "1"  # part of the cache key: count it up when TextDocuments reads differently
READ_SIZE = 10 << 20  # bytes of a .txt file in memory at a time


def find_files(flag: str, paths: list[str]) -> list[str]:
    """The files that paths, globs and folders stand for, those of a folder or glob sorted by name.

    Raises:
        UsageError: a path at which there is nothing, or nothing of a format that is read; or files of several formats.
    """
    files = []
    for path in map(str, map(Path.expanduser, map(Path, paths))):
        if Path(path).is_dir():
            found = [str(file) for file in sorted(Path(path).rglob("*")) if file.is_file() and _format_of(str(file))]
            if not found:
                raise UsageError(f"{flag} {path}: the folder holds no file of {' '.join(FORMATS)}")
        elif Path(path).is_file():
            if not _format_of(path):
                raise UsageError(
                    f"{flag} {path}: the name must end in one of {' '.join(FORMATS)} (then .gz or the like)"
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
        raise UsageError(f"{flag}: files of one format at a time, not {' and '.join(sorted(formats.values()))}")
    return files


def load_files(flag: str, files: list[str], data_args: DataArguments, cache_dir: str | None) -> Dataset:
    """Read files of one format, in their order, into a data set that `datasets` keeps in its cache.

    Raises:
        UsageError: text that is not UTF-8 (which file, which byte), malformed JSON (which line), a file that cannot be
            decompressed, or no text at all.
    """
    file_format = _format_of(files[0])
    try:
        data_files = {"train": [glob.escape(file) for file in files]}  # `datasets` would take [1] for a pattern
        if file_format == "text":
            builder = TextDocuments(
                cache_dir=cache_dir,
                data_files=data_files,
                document_by=data_args.document_by,
                keep_linebreaks=data_args.keep_linebreaks,
                hash=TEXT_READER_VERSION,
            )
            builder.download_and_prepare()
            return builder.as_dataset(split="train")
        builder_name, options = READERS[file_format]
        if file_format == "parquet":  # the other builders decompress by themselves
            download_config = datasets.DownloadConfig(cache_dir=cache_dir)
            data_files = {"train": datasets.DownloadManager(download_config=download_config).extract(files)}
        return datasets.load_dataset(builder_name, data_files=data_files, cache_dir=cache_dir, **options)["train"]
    except Exception as error:
        raise _explain(error, flag, files, file_format) from error


@dataclass
class TextDocumentsConfig(datasets.BuilderConfig):
    """How .txt files are cut into documents; see DataArguments."""

    document_by: str = "line"
    keep_linebreaks: bool = True


class TextDocuments(datasets.ArrowBasedBuilder):
    """.txt files -> documents, one Arrow row each, cached by `datasets`.

    Its own reader since the one in `datasets` also splits at a lone carriage return, and cuts paragraphs at every
    second newline. Lines end at "\\n" alone. With `keep_linebreaks` the documents put together are the file, byte for
    byte, however they are cut.
    """

    BUILDER_CONFIG_CLASS = TextDocumentsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features({"text": datasets.Value("large_string")}))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"files": files})
            for split, files in self.config.data_files.items()
        ]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        for file_index, file in enumerate(files):
            for part, documents in enumerate(
                _read_documents(file, self.config.document_by, self.config.keep_linebreaks)
            ):
                yield (file_index, part), pa.table({"text": pa.array(documents, pa.large_string())})


def _read_documents(file: str, document_by: str, keep_linebreaks: bool) -> Iterator[list[str]]:
    rest = ""
    for text in _read_text(file):
        text = rest + text
        if document_by == "file":
            rest = text
            continue
        if document_by == "line":
            documents = text.split("\n")
            rest = documents.pop()
            documents = [line + "\n" for line in documents]
        else:  # a document ends with the last of its blank lines, so the text after it must have begun
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


def _read_text(file: str) -> Iterator[str]:
    """The file's text in pieces that end at a line's end. Raises UsageError where it is not UTF-8."""
    offset = 0
    with fsspec.open(file, "rb", compression="infer") as stream:
        while data := stream.read(READ_SIZE):
            data += stream.readline()
            try:
                yield data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{file}: not UTF-8 at byte {offset + error.start:,} ({error.reason}); convert it, for instance "
                    "with iconv"
                ) from error
            offset += len(data)


def _explain(error: Exception, flag: str, files: list[str], file_format: str) -> UsageError:
    """Say which file, and where in it, made `datasets` fail: its own errors name neither."""
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
