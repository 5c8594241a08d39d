"""Tokenize a corpus once: flat arrays on disk, cached under a key of our own, memory-mapped by every process."""

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

import numpy as np
import tokenizers
from datasets import Dataset
from filelock import FileLock
from torch.distributed import TCPStore
from transformers import PreTrainedTokenizerBase

from utils.config.data_arguments import DataArguments
from utils.environment import local_world_size, master_address, master_port, world_size
from utils.errors import UsageError
from utils.fingerprint import checksum, code_fingerprint, fingerprint
from utils.progress import progress
from utils.text.cache import cache_folder
from utils.text.columns import read_texts
from utils.text.document_stream import ROWS_PER_READ, DocumentStream
from utils.text.row import Row
from utils.text.segmentation import Segmenter
from utils.tokens.encoder import Encoded, Encoder
from utils.tokens.store_writer import StoreWriter
from utils.tokens.threads import map_in_threads
from utils.tokens.token_stream import TokenStream, num_threads
from utils.tokens.word_starts import require_word_boundaries


logger = logging.getLogger(__name__)

FORMAT_VERSION = 2  # part of the cache key: increase it when the files change for the same input
CHARACTERS_PER_TASK = 500_000  # large enough to keep a thread busy for 50 ms, small enough for smooth progress
_BUILD_NUMBERS = itertools.count()


class TokenStore:
    """The tokens of a corpus, document after document. The arrays are memory-mapped, so any size fits in memory.

    Attributes:
        tokens: uint16 or uint32 (the smallest type that holds the vocabulary), shape (tokens,).
        offsets: int64, shape (documents + 1,); document i is `tokens[offsets[i]:offsets[i + 1]]`.
        token_bytes: uint32, shape (tokens,), the UTF-8 bytes that each token stands for; None if not stored.
        word_starts: uint8, shape (tokens,), 1 where a token starts a word; None if not stored.
        segment_offsets: int64, shape (segments + 1,), like `offsets` but for the segments of the documents. Each
            segment has at least one token. None if not stored.
        num_bytes: UTF-8 bytes of all documents.
        num_documents: documents, including those without tokens.
        checksum: of the tokens and the offsets, 16 hexadecimal digits.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        meta = json.loads((self.path / "meta.json").read_text())
        self.num_bytes: int = meta["bytes"]
        self.num_documents: int = meta["documents"]
        self._checksum: str | None = meta.get("checksum")  # stores of earlier releases have none
        self.tokens = _memory_map(self.path / "tokens.bin", meta["dtype"], meta["tokens"])
        self.offsets = _memory_map(self.path / "offsets.bin", "int64", meta["documents"] + 1)
        self.token_bytes = self._map_if_stored("token_bytes.bin", "uint32", meta["tokens"])
        self.word_starts = self._map_if_stored("word_starts.bin", "uint8", meta["tokens"])
        self.segment_offsets = self._map_if_stored("segment_offsets.bin", "int64", meta.get("segments", 0) + 1)

    def _map_if_stored(self, name: str, dtype: str, length: int) -> np.ndarray | None:
        return _memory_map(self.path / name, dtype, length) if (self.path / name).exists() else None

    @functools.cached_property
    def checksum(self) -> str:
        if self._checksum is not None:
            return self._checksum
        arrays = (self.tokens, self.offsets, self.segment_offsets)
        return checksum(*(array for array in arrays if array is not None))

    def __reduce__(self):  # a dataloader worker maps the files again instead of receiving a copy of them
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
    """Tokenize each document as the tokenizer does by default, or reuse the result of an earlier run.

    An endless stream is not read yet. The result is then a TokenStream, which tokenizes while it is read.

    Any number of processes can call this with the same arguments. The first one to acquire the lock file tokenizes
    while the others wait for the file. This involves no collective operation that could time out.

    Args:
        documents: the rows passed to `document_text`.
        document_text: returns the text that the model reads of a row; None leaves the row out.
        data_args: provides `--preprocessing_num_workers` and `--overwrite_cache`.
        cache_dir: None for the cache of `datasets`.
        description: name of the documents in the progress and the log.
        append_eos: end each non-empty document with exactly one end-of-text token, even if the tokenizer adds its own.
        add_special_tokens: add the special tokens of the tokenizer's template to each text, such as [CLS] and [SEP].
        with_token_bytes: also store the bytes of each token, for bits per byte. Ignored for slow tokenizers.
        with_word_starts: also store where the words of the tokenizer start, for `--whole_word_mask`.
        segmenter: tokenize the segments of a document one by one and also store where they start.
        num_tokens_needed: stop reading a stream after this many tokens; None to read all of it.

    Raises:
        UsageError: `append_eos` with a tokenizer without an end-of-text token, `with_word_starts` with one that does
            not report word boundaries, a `document_text` that reads a column that does not exist or does not return a
            string, or documents without a single token.
    """
    if append_eos and tokenizer.eos_token_id is None:
        raise UsageError(
            "--append_eos: this tokenizer has no end-of-text token; leave it out or choose another tokenizer"
        )
    if with_word_starts:
        require_word_boundaries(tokenizer)
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
        next(iterate_texts(documents, document_text), None)  # finds a missing column before the model is loaded
        num_workers = num_threads(data_args.preprocessing_num_workers)
        return TokenStream(documents, encoder, document_text, num_workers, key)
    elif num_tokens_needed is not None:
        key = fingerprint(key=key, num_tokens_needed=num_tokens_needed)
    path = cache_folder(cache_dir) / key
    with FileLock(f"{path}.lock"):
        is_cached = (path / "meta.json").exists() and not (
            data_args.overwrite_cache and _builder_of(path) != _job_name()
        )
        if not is_cached:
            num_workers = data_args.preprocessing_num_workers
            _build(path, documents, encoder, document_text, num_workers, description, num_tokens_needed)
    store = TokenStore(path)
    logger.info(
        "%s: %s documents, %s tokens, %s bytes of text; %s: %s",
        description, f"{store.num_documents:,}", f"{len(store.tokens):,}", f"{store.num_bytes:,}",
        "tokenized earlier" if is_cached else "tokenized", path,
    )  # fmt: skip
    if len(store.tokens) == 0:
        raise UsageError(f"the {description} corpus is empty: its {store.num_documents:,} documents have no tokens")
    return store


def iterate_texts(
    documents: Dataset | DocumentStream, document_text: Callable[[dict], str | None]
) -> Iterator[list[str | None]]:
    """The texts of the documents in order, in lists of at most `ROWS_PER_READ`; None for a row that is left out."""
    for columns in documents.iter(batch_size=ROWS_PER_READ):
        rows = (Row(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        yield read_texts(rows, document_text)


def _build(
    path: Path,
    documents: Dataset | DocumentStream,
    encoder: Encoder,
    document_text: Callable[[dict], str | None],
    num_workers: int | None,
    description: str,
    num_tokens_needed: int | None,
) -> None:
    """Write the store next to `path`, then rename it, so that no process ever sees an incomplete one."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # from a job that died
    unfinished.mkdir()
    num_left_out = 0

    def encode(batch: tuple[list[str], int]) -> tuple[Encoded, int]:
        texts, num_skipped = batch
        return encoder(texts), num_skipped

    def write_batches() -> Iterator[int]:
        nonlocal num_left_out
        batches = _batches(iterate_texts(documents, document_text))
        for encoded, num_skipped in map_in_threads(encode, batches, num_workers or len(os.sched_getaffinity(0))):
            writer.append(encoded)
            num_left_out += num_skipped
            yield len(encoded.lengths)
            if num_tokens_needed is not None and writer.num_tokens >= num_tokens_needed:
                return

    num_documents = None if isinstance(documents, DocumentStream) else len(documents)
    try:
        with StoreWriter(unfinished, encoder) as writer:
            progress(write_batches(), num_documents, f"tokenizing {description}", "documents")
    except UsageError:  # in a row
        shutil.rmtree(unfinished)
        raise
    if num_left_out:
        logger.info("%s: document_text left out %s documents", description, f"{num_left_out:,}")
    meta = {
        "documents": writer.num_documents,
        "segments": writer.num_segments,
        "tokens": writer.num_tokens,
        "bytes": writer.num_bytes,
        "left_out": num_left_out,
        "dtype": encoder.dtype.name,
        "job": _job_name(),
    }
    (unfinished / "meta.json").write_text(json.dumps(meta))
    meta["checksum"] = TokenStore(unfinished).checksum
    (unfinished / "meta.json").write_text(json.dumps(meta, indent=2))
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)


def _batches(lists: Iterator[list[str | None]]) -> Iterator[tuple[list[str], int]]:
    """Merge lists of texts into batches of more than CHARACTERS_PER_TASK characters; the last one may be shorter.

    Yields:
        (texts, num_skipped): the texts of the batch, and the number of rows that are left out (None).
    """
    texts, num_characters, num_skipped = [], 0, 0
    for some in lists:
        kept = [text for text in some if text is not None]
        texts += kept
        num_characters += sum(map(len, kept))
        num_skipped += len(some) - len(kept)
        if num_characters > CHARACTERS_PER_TASK:
            yield texts, num_skipped
            texts, num_characters, num_skipped = [], 0, 0
    if texts or num_skipped:
        yield texts, num_skipped


def _job_name() -> str:
    """The same name in all processes of a job, on all its machines. --overwrite_cache builds a store once per job."""
    num_processes = world_size()
    if num_processes == 1:
        return f"{socket.gethostname()}.{os.getpid()}.{next(_BUILD_NUMBERS)}"
    if num_processes == (local_world_size() or num_processes):
        return f"{socket.gethostname()}.{os.getppid()}"
    return _multi_machine_job_name()


@functools.cache
def _multi_machine_job_name() -> str:
    """A name chosen by the first process that asks, kept in the key-value store of the process group's rendezvous."""
    store = TCPStore(master_address(), master_port(), is_master=False)
    return store.compare_set("language_modeling/job", "", uuid.uuid4().hex).decode()


def _builder_of(path: Path) -> str:
    """The name of the job that built the store."""
    return json.loads((path / "meta.json").read_text())["job"]


def _memory_map(file: Path, dtype: str, length: int) -> np.ndarray:
    if length == 0:
        return np.empty(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r", shape=(length,))
