"""Read documents from local files, plain or compressed: .txt with our own reader, other formats with `datasets`."""

import errno
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset

from utils.config.data_arguments import DataArguments
from utils.errors import UsageError
from utils.fingerprint import fingerprint
from utils.text.csv_files import CSV_READER_VERSION, SEPARATORS, CsvDocuments
from utils.text.file_formats import COMPRESSIONS, FORMATS, READ_SIZE, format_of, has_byte_order_mark, read_text
from utils.text.json_files import MarkedJsonDocuments
from utils.text.read_errors import explain_read_error


TEXT_READER_VERSION = "1"  # part of the cache key: increase it when TextDocuments reads differently
# Bytes of a .txt file in one shard of a stream. Resuming within a shard reads at most this much again.
PIECE_SIZE = 64 << 20


def find_files(flag: str, paths: list[str]) -> list[str]:
    """Expand paths, globs and folders into files. The files of a folder or glob are sorted by name.

    Raises:
        UsageError: a path that does not exist, that matches no file of a supported format, a file that cannot be
            opened, or files of more than one format.
    """
    files = []
    for path in map(os.path.expanduser, paths):
        files += _files_of(flag, path)
    for file in files:
        try:
            open(file, "rb").close()
        except OSError as error:
            raise UsageError(f"{flag} {file}: cannot be read: {error.strerror}") from error
    formats = {format_of(file): file for file in files}
    if len(formats) > 1:
        raise UsageError(
            f"{flag}: all files must have the same format, unlike {' and '.join(sorted(formats.values()))}"
        )
    return files


def _files_of(flag: str, path: str) -> list[str]:
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
            raise UsageError(f"{flag} {path}: cannot be read: {os.strerror(errno.EACCES)}")
        found = [str(file) for file in sorted(Path(path).rglob("*")) if file.is_file() and format_of(str(file))]
        if not found:
            raise UsageError(f"{flag} {path}: the folder contains no {' '.join(FORMATS)} files")
    elif os.path.isfile(path):
        if not format_of(path):
            raise UsageError(
                f"{flag} {path}: the name must end in one of {' '.join(FORMATS)}, with or without "
                f"{' '.join(COMPRESSIONS)}"
            )
        found = [path]
    else:
        found = [file for file in sorted(glob.glob(path, recursive=True)) if format_of(file)]
        if not found:
            kind = "no file matches" if glob.has_magic(path) else "there is no such file or folder"
            raise UsageError(f"{flag} {path}: {kind}")
    return found


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
            cannot be decompressed, a CSV file with unbalanced quotes, or no text at all.
    """
    try:
        builder = _builder(files, data_args, cache_dir)
        if data_args.streaming:
            return builder.as_streaming_dataset(split="train")
        builder.download_and_prepare()
        return builder.as_dataset(split="train")
    except Exception as error:
        raise explain_read_error(error, flag, files) from error


def _builder(files: list[str], data_args: DataArguments, cache_dir: str | None) -> datasets.DatasetBuilder:
    file_format = format_of(files[0])
    data_files = {"train": [glob.escape(file) for file in files]}  # otherwise `datasets` treats [1] as a pattern
    if file_format == "text":
        return TextDocuments(
            cache_dir=cache_dir,
            data_files=data_files,
            document_by=data_args.document_by,
            keep_linebreaks=data_args.keep_linebreaks,
            hash=_text_reader_version(files),
        )
    if file_format in SEPARATORS:
        # Without keep_default_na=False, texts such as "NA" or "None" would be read as missing.
        options = {"sep": SEPARATORS[file_format], "encoding": "utf8", "keep_default_na": False}
        return CsvDocuments(cache_dir=cache_dir, data_files=data_files, hash=CSV_READER_VERSION, **options)
    options = {}
    if file_format == "json":
        options["encoding"] = "utf8"  # not "utf-8", with which the builder skips the decoding that finds invalid bytes
        if data_args.streaming:
            options["chunksize"] = READ_SIZE
        if any(map(has_byte_order_mark, files)):
            return MarkedJsonDocuments(cache_dir=cache_dir, data_files=data_files, **options)
    elif not data_args.streaming:  # the other builders decompress files themselves
        download_config = datasets.DownloadConfig(cache_dir=cache_dir)
        data_files = {"train": datasets.DownloadManager(download_config=download_config).extract(files)}
    return datasets.load_dataset_builder(file_format, data_files=data_files, cache_dir=cache_dir, **options)


def files_fingerprint(files: list[str], data_args: DataArguments) -> str:
    """Digest of what determines the documents in these files: names, sizes, modification times and reading options."""
    stats = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in map(os.path.abspath, files)]
    return fingerprint(
        version=_text_reader_version(files) if format_of(files[0]) == "text" else TEXT_READER_VERSION,
        files=stats,
        document_by=data_args.document_by,
        keep_linebreaks=data_args.keep_linebreaks,
        piece_size=PIECE_SIZE,
    )


def _text_reader_version(files: list[str]) -> str:
    """Part of the cache key. Earlier versions took a byte order mark for text; what they cached is not used again."""
    return TEXT_READER_VERSION + ("-without-mark" if any(map(has_byte_order_mark, files)) else "")


@dataclass
class TextDocumentsConfig(datasets.BuilderConfig):
    """How .txt files are split into documents; see DataArguments."""

    document_by: str = "line"
    keep_linebreaks: bool = True


class TextDocuments(datasets.ArrowBasedBuilder):
    """Reads .txt files as documents, one Arrow row each, cached by `datasets`.

    Lines end at "\\n" only. With `keep_linebreaks`, the concatenated documents equal the file byte for byte, however
    it is split; only a byte order mark at the beginning is left out. The text reader of `datasets` would also split at
    a lone carriage return, and would end a paragraph at every second newline.
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
                read_documents(*piece, self.config.document_by, self.config.keep_linebreaks)
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


def read_documents(
    file: str, start: int, end: int | None, document_by: str, keep_linebreaks: bool
) -> Iterator[list[str]]:
    """The documents of a piece in order, in lists. Memory is bounded by READ_SIZE and the longest document."""
    rest = ""
    for text in read_text(file, start, end):
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
