"""Tokenize the parts of a corpus, by any number of processes at once, each part by one of them."""

import functools
import itertools
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from torch.distributed import TCPStore

from utils.environment import local_world_size, master_address, master_port, world_size
from utils.fingerprint import fingerprint
from utils.text.columns import read_texts
from utils.text.row import Row
from utils.tokens.corpus_parts import Part
from utils.tokens.encoder import Encoded, Encoder, EncodersDiffer
from utils.tokens.exactness import documents_to_compare
from utils.tokens.part_writer import PartWriter
from utils.tokens.refusals import heed_refusal, refuse
from utils.tokens.store_files import CorruptFolder, new_folder, read_folder
from utils.tokens.threads import map_in_threads
from utils.tokens.token_store import PART_METADATA


logger = logging.getLogger(__name__)

CHARACTERS_PER_TASK = 500_000  # large enough to keep a thread busy for 50 ms, small enough for smooth progress
_BUILD_NUMBERS = itertools.count()


@dataclass
class Build:
    """How the parts of a corpus are tokenized.

    Args:
        folder: the cache, where each part has a folder.
        key: the corpus and all that determines its tokens.
        parts: the parts, in order, by the names of their folders.
        encoder: texts -> ids. Where it turns out to be wrong, it is told to use `tokenizers`.
        document_text: what the model reads of a row; None leaves the row out.
        num_workers: threads that tokenize.
        overwrite: tokenize again what another job has tokenized.
        num_tokens_needed: stop after this many tokens; None to read all.
    """

    folder: Path
    key: str
    parts: dict[str, Part]
    encoder: Encoder
    document_text: Callable[[dict], str | None]
    num_workers: int
    overwrite: bool
    num_tokens_needed: int | None = None

    def __post_init__(self):
        self.job = _job_name()
        self.num_built = 0
        self.refusal_file = self.folder / f"{self.key}.refusal"

    @property
    def paths(self) -> list[Path]:
        return [self.folder / key for key in self.parts]

    def run(self) -> Iterator[int]:
        """Tokenize the parts that are missing, damaged or not to be trusted. Yields the documents that are done.

        A part that another process is tokenizing is left to it, and waited for only when nothing else is left to do.
        No collective operation is involved, so nothing times out.
        """
        missing = list(self.parts)
        while missing:
            others = []
            for key in missing:
                try:
                    with FileLock(self._lock(key), blocking=False):
                        yield from self._provide(key)
                except Timeout:
                    others.append(key)
                except EncodersDiffer as difference:
                    refuse(self.encoder, self.refusal_file, self.parts[key].name, difference.text)
                    break
            else:
                missing = others
                if others:
                    with FileLock(self._lock(others[0])):
                        pass  # its process has finished it, or died
                    continue
            # Another process may have refused the encoder while this one tokenized other parts.
            missing = [key for key in self.parts if not self._is_usable(key)]

    def _lock(self, key: str) -> str:
        return f"{self.folder / key}.lock"

    def _provide(self, key: str) -> Iterator[int]:
        if not self._is_usable(key):
            yield from self._tokenize(key)
            self.num_built += 1

    def _is_usable(self, key: str) -> bool:
        """Whether a part exists, is intact and was made as it should be."""
        heed_refusal(self.encoder, self.refusal_file)
        try:
            metadata = read_folder(self.folder / key, PART_METADATA)
        except CorruptFolder as damage:
            logger.warning("%s: %s; it is tokenized again", self.parts[key].name, damage)
            return False
        if metadata is None or (self.overwrite and metadata["job"] != self.job):
            return False
        return self.encoder.fast is not None or metadata["is_by_tokenizers"]

    def _tokenize(self, key: str) -> Iterator[int]:
        part = self.parts[key]
        is_first = key == next(iter(self.parts))
        seed = int(key[:16], 16)
        name, is_by_tokenizers, num_compared = self.encoder.name, self.encoder.fast is None, 0

        def encode(task: tuple[list[str], list[int], int, int]) -> tuple[Encoded, list[int], int, int]:
            texts, rows, num_rows, first_number = task
            compared = documents_to_compare(texts, seed, first_number, is_first and first_number == 0)
            return self.encoder(texts, compared), rows, num_rows, len(compared)

        with new_folder(self.folder / key, PART_METADATA) as (folder, metadata):
            with PartWriter(folder, self.encoder) as writer:
                tasks = _tasks(part.read(), self.document_text)
                for encoded, rows, num_rows, compared in map_in_threads(encode, tasks, self.num_workers):
                    writer.append(encoded, rows, num_rows)
                    num_compared += compared
                    yield len(encoded.lengths)
                    if self.num_tokens_needed is not None and writer.num_tokens >= self.num_tokens_needed:
                        break
            metadata |= {
                "rows": writer.num_rows,
                "documents": writer.num_documents,
                "segments": writer.num_segments,
                "tokens": writer.num_tokens,
                "bytes": writer.num_bytes,
                "dtype": self.encoder.dtype.name,
                "encoder": name,
                "is_by_tokenizers": is_by_tokenizers,
                "compared": 0 if is_by_tokenizers else num_compared,
                "job": self.job,
            }


def part_key(key: str, part: Part) -> str:
    """The name of a part's folder. `key` is what determines the tokens beside the rows."""
    return fingerprint(key=key, part=part.identity)


def _tasks(
    lists: Iterator[list[Row]], document_text: Callable[[dict], str | None]
) -> Iterator[tuple[list[str], list[int], int, int]]:
    """Merge lists of rows into batches of more than CHARACTERS_PER_TASK characters; the last one may be shorter.

    Yields:
        (texts, rows, num_rows, first_number): the texts of a batch, the numbers of their rows within the batch, the
        rows of the batch, including those left out, and the number of the first text.
    """
    texts, rows, num_rows, num_characters, first_number = [], [], 0, 0, 0
    for some in lists:
        found = read_texts(some, document_text)
        kept = [text for text in found if text is not None]
        texts += kept
        rows += [num_rows + i for i, text in enumerate(found) if text is not None]
        num_rows += len(found)
        num_characters += sum(map(len, kept))
        if num_characters > CHARACTERS_PER_TASK:
            yield texts, rows, num_rows, first_number
            first_number += len(texts)
            texts, rows, num_rows, num_characters = [], [], 0, 0
    if num_rows:
        yield texts, rows, num_rows, first_number


def _job_name() -> str:
    """The same name in all processes of a job, on all its machines. --overwrite_cache tokenizes once per job."""
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
