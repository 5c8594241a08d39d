"""Documents -> token ids, once: flat arrays on disk, cached under a key that is ours, memory-mapped by all."""

import functools
import itertools
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import tokenizers
from datasets import Dataset
from filelock import FileLock
from torch.distributed import TCPStore
from transformers import PreTrainedTokenizerBase

from utils.config.data_arguments import DataArguments
from utils.environment import local_world_size, master_address, master_port, world_size
from utils.errors import UsageError
from utils.fingerprint import code_fingerprint, fingerprint
from utils.progress import progress
from utils.text.document_stream import ROWS_PER_READ, DocumentStream
from utils.text.segmentation import Segmenter
from utils.tokens.encoder import Encoder, map_in_threads, require_words
from utils.tokens.token_stream import TokenStream, num_threads


logger = logging.getLogger(__name__)

FORMAT_VERSION = 2  # part of the cache key: count it up when the files' content changes for the same input
CHARACTERS_PER_TASK = 500_000  # large enough to keep a thread busy for 50 ms, small enough for even progress


class TokenStore:
    """The tokens of a corpus, document after document, memory-mapped: its size does not count as memory in use.

    Attributes:
        tokens: uint16 or uint32 (the smallest that holds the vocabulary), shape (tokens,).
        offsets: int64, shape (documents + 1,); document i is `tokens[offsets[i]:offsets[i + 1]]`.
        token_bytes: uint32, shape (tokens,), the UTF-8 bytes that each token stands for; None where not asked for.
        word_starts: uint8, shape (tokens,), 1 where a token begins a word; None where not asked for.
        segment_offsets: int64, shape (segments + 1,), as `offsets`, of the segments that documents are made of, each
            of which has a token; None where not asked for.
        num_bytes: UTF-8 bytes of all documents.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        meta = json.loads((self.path / "meta.json").read_text())
        self.num_bytes: int = meta["bytes"]
        self.num_documents: int = meta["documents"]
        self.tokens = _map(self.path / "tokens.bin", meta["dtype"], meta["tokens"])
        self.offsets = _map(self.path / "offsets.bin", "int64", meta["documents"] + 1)
        self.token_bytes = self._map_if_stored("token_bytes.bin", "uint32", meta["tokens"])
        self.word_starts = self._map_if_stored("word_starts.bin", "uint8", meta["tokens"])
        self.segment_offsets = self._map_if_stored("segment_offsets.bin", "int64", meta.get("segments", 0) + 1)

    def _map_if_stored(self, name: str, dtype: str, length: int) -> np.ndarray | None:
        return _map(self.path / name, dtype, length) if (self.path / name).exists() else None

    def __reduce__(self):  # a dataloader's worker maps the files again instead of receiving a copy of them
        return TokenStore, (self.path,)


def tokenize_documents(
    documents: Dataset | DocumentStream,
    tokenizer: PreTrainedTokenizerBase,
    document_text: Callable[[dict], str | None],
    data_args: DataArguments,
    *,
    cache_dir: str | None,
    description: str,
    append_eos: bool = False,
    add_special_tokens: bool = True,
    with_token_bytes: bool = False,
    with_word_starts: bool = False,
    segmenter: Segmenter | None = None,
    num_tokens_needed: int | None = None,
) -> TokenStore | TokenStream:
    """Tokenize every document as its tokenizer does by default, or map the result of an earlier run.

    Of an endless stream nothing is read yet: what is returned is a TokenStream, which blocks are made from.

    Any number of processes may call this with the same arguments: the first to get the lock file tokenizes, the
    others wait for the file, in no collective operation that could time out.

    Args:
        documents: rows for `document_text`.
        document_text: what the model reads of a row; None leaves the row out.
        data_args: `--preprocessing_num_workers` and `--overwrite_cache`.
        cache_dir: None for the cache of `datasets`.
        description: what the progress and the log call these documents.
        append_eos: end each document that has text with exactly one end-of-text token, also where the tokenizer adds
            its own.
        add_special_tokens: with what the tokenizer's template adds to each text, such as [CLS] and [SEP].
        with_token_bytes: also store the bytes of each token, for bits per byte; needs a fast tokenizer.
        with_word_starts: also store where the tokenizer's own words begin, for `--whole_word_mask`.
        segmenter: tokenize the segments of a document one by one and also store where they begin, for pairs of them.
        num_tokens_needed: a stream is read until there are so many tokens, if it has them; None for all of it.

    Raises:
        UsageError: `append_eos` with a tokenizer that has no end-of-text token, `with_word_starts` with one that
            cannot tell words, or no token in all the documents.
    """
    if append_eos and tokenizer.eos_token_id is None:
        raise UsageError("--append_eos: this tokenizer has no end-of-text token; leave it out or choose another one")
    if with_word_starts:
        require_words(tokenizer)
    encoder = Encoder(
        tokenizer, append_eos, add_special_tokens, with_token_bytes and tokenizer.is_fast, with_word_starts, segmenter
    )
    key = fingerprint(
        format_version=FORMAT_VERSION,
        documents=documents._fingerprint,
        document_text=code_fingerprint(document_text),
        tokenizer=encoder.fingerprint,
        tokenizers_version=tokenizers.__version__,
        append_eos=append_eos,
        add_special_tokens=add_special_tokens,
        with_token_bytes=encoder.count_bytes is not None,
        with_word_starts=with_word_starts,
        segmenter=segmenter and segmenter.fingerprint,
    )
    if not isinstance(documents, DocumentStream):
        num_tokens_needed = None
    elif documents.is_endless:
        num_workers = num_threads(data_args.preprocessing_num_workers)
        return TokenStream(documents, encoder, document_text, num_workers, key)
    elif num_tokens_needed is not None:
        key = fingerprint(key=key, num_tokens_needed=num_tokens_needed)
    path = cache_folder(cache_dir) / key
    with FileLock(f"{path}.lock"):
        is_cached = (path / "meta.json").exists() and not (
            data_args.overwrite_cache and _built_by(path) != _this_job()
        )
        if not is_cached:
            num_workers = data_args.preprocessing_num_workers
            _build(path, documents, encoder, document_text, num_workers, description, num_tokens_needed)
    store = TokenStore(path)
    logger.info(
        "%s: %s documents, %s tokens, %s bytes of text; %s: %s",
        description, f"{store.num_documents:,}", f"{len(store.tokens):,}", f"{store.num_bytes:,}",
        "tokenized before" if is_cached else "tokenized", path,
    )  # fmt: skip
    if len(store.tokens) == 0:
        raise UsageError(f"the {description} corpus is empty: its {store.num_documents:,} documents have no token")
    return store


def cache_folder(cache_dir: str | None) -> Path:
    """Where token stores and trained tokenizers are kept; made if missing."""
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / "language_modeling"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def texts(
    documents: Dataset | DocumentStream, document_text: Callable[[dict], str | None]
) -> Iterator[list[str | None]]:
    """The documents' texts in order, in lists of at most `ROWS_PER_READ`."""
    for columns in documents.iter(batch_size=ROWS_PER_READ):
        yield [document_text(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _build(
    path: Path,
    documents: Dataset | DocumentStream,
    encoder: Encoder,
    document_text: Callable[[dict], str | None],
    num_workers: int | None,
    description: str,
    num_tokens_needed: int | None,
) -> None:
    """Write the store beside `path` and rename it into place, so that no reader ever sees half of it."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a job that died
    unfinished.mkdir()
    counts = {"documents": 0, "segments": 0, "tokens": 0, "bytes": 0, "left_out": 0}

    def tasks() -> Iterator[list[str]]:
        task, characters = [], 0
        for batch in texts(documents, document_text):
            kept = [text for text in batch if text is not None]
            counts["left_out"] += len(batch) - len(kept)
            task += kept
            characters += sum(map(len, kept))
            if characters > CHARACTERS_PER_TASK:
                yield task
                task, characters = [], 0
        if task:
            yield task

    def steps() -> Iterator[int]:
        bytes_before = 0  # of documents without a token; they count for the next token
        last_count = 0
        with (
            open(unfinished / "tokens.bin", "wb") as tokens_file,
            open(unfinished / "offsets.bin", "wb") as offsets_file,
            open(unfinished / "token_bytes.bin", "w+b") as bytes_file,
            open(unfinished / "word_starts.bin", "wb") as words_file,
            open(unfinished / "segment_offsets.bin", "wb") as segments_file,
        ):
            offsets_file.write(np.int64(0).tobytes())
            segments_file.write(np.int64(0).tobytes())
            for encoded in map_in_threads(encoder, tasks(), num_workers or len(os.sched_getaffinity(0))):
                encoded.tokens.tofile(tokens_file)
                (counts["tokens"] + np.cumsum(encoded.lengths)).tofile(offsets_file)
                if encoded.token_bytes is not None:
                    if len(encoded.tokens):
                        encoded.token_bytes[0] += bytes_before
                        bytes_before = 0
                        last_count = int(encoded.token_bytes[-1])
                    encoded.token_bytes.astype(np.uint32).tofile(bytes_file)
                    bytes_before += encoded.bytes_after
                if encoded.word_starts is not None:
                    encoded.word_starts.tofile(words_file)
                if encoded.segment_lengths is not None:
                    (counts["tokens"] + np.cumsum(encoded.segment_lengths)).tofile(segments_file)
                    counts["segments"] += len(encoded.segment_lengths)
                counts["documents"] += len(encoded.lengths)
                counts["tokens"] += len(encoded.tokens)
                counts["bytes"] += encoded.num_bytes
                yield len(encoded.lengths)
                if num_tokens_needed is not None and counts["tokens"] >= num_tokens_needed:
                    break
            if bytes_before and counts["tokens"]:
                bytes_file.seek(-4, os.SEEK_END)
                bytes_file.write(np.uint32(last_count + bytes_before).tobytes())

    num_documents = None if isinstance(documents, DocumentStream) else len(documents)
    progress(steps(), num_documents, f"tokenizing {description}", "documents")
    if encoder.count_bytes is None:
        (unfinished / "token_bytes.bin").unlink()
    if not encoder.with_word_starts:
        (unfinished / "word_starts.bin").unlink()
    if encoder.segmenter is None:
        (unfinished / "segment_offsets.bin").unlink()
    if counts["left_out"]:
        logger.info("%s: document_text left out %s documents", description, f"{counts['left_out']:,}")
    meta = {**counts, "dtype": encoder.dtype.name, "job": _this_job()}
    (unfinished / "meta.json").write_text(json.dumps(meta, indent=2))
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)


def _this_job() -> str:
    """One name for all processes of a job, on all its machines: what --overwrite_cache builds once for."""
    num_processes = world_size()
    if num_processes == 1:
        return f"{socket.gethostname()}.{os.getpid()}.{next(_BUILD_NUMBERS)}"
    if num_processes == (local_world_size() or num_processes):
        return f"{socket.gethostname()}.{os.getppid()}"
    return _name_of_job_on_many_machines()


@functools.cache
def _name_of_job_on_many_machines() -> str:
    """The first process to ask makes it up, and leaves it in the store where the processes have found each other."""
    store = TCPStore(master_address(), master_port(), is_master=False)
    return store.compare_set("language_modeling/job", "", uuid.uuid4().hex).decode()


def _built_by(path: Path) -> str:
    return json.loads((path / "meta.json").read_text())["job"]


def _map(file: Path, dtype: str, length: int) -> np.ndarray:
    if length == 0:
        return np.empty(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r", shape=(length,))


_BUILD_NUMBERS = itertools.count()
