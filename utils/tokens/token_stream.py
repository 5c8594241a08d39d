"""A stream of documents -> a stream of token ids: shuffled, tokenized in threads during training, resumable."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import rng
from utils.environment import local_world_size
from utils.errors import UsageError
from utils.text.columns import read_texts
from utils.text.document_stream import DocumentStream
from utils.tokens.encoder import Encoded, Encoder, EncodersDiffer
from utils.tokens.exactness import documents_to_compare
from utils.tokens.refusals import refuse
from utils.tokens.threads import map_in_threads


CHARACTERS_PER_TASK = 200_000  # they keep a thread busy for 20 ms
DRAWS_PER_CHUNK = 4096  # from the shuffle buffer; part of what a seed means


class Document(NamedTuple):
    """The token ids of a document, in arrays of its own. The field names are part of the format of checkpoints."""

    tokens: np.ndarray  # uint16 or uint32, (tokens,)
    word_starts: np.ndarray | None  # uint8, (tokens,)
    segment_lengths: np.ndarray | None  # int64, (segments,)


class Position(NamedTuple):
    """Where to continue reading."""

    epoch: int = 0
    shards_done: int = 0  # of this process, in this epoch
    row: int = 0  # of the next shard


@dataclass(frozen=True)
class TokenStream:
    """A stream of documents and how to tokenize it while it is read; see `tokenize_documents`.

    Args:
        documents: the training documents.
        encoder: texts -> ids.
        document_text: what the model reads of a row; None leaves the row out.
        num_workers: threads that tokenize.
        fingerprint: identifies everything that determines the tokens.
        refusal_file: tells other processes, and later runs, that the fast encoder is wrong for this text.
    """

    documents: DocumentStream
    encoder: Encoder
    document_text: Callable[[dict], str | None]
    num_workers: int
    fingerprint: str
    refusal_file: Path


class TokenizedDocuments:
    """The documents of one process, epoch after epoch, with None after the last one of each epoch.

    Each process reads the same number of whole shards. If the number of shards is not a multiple of the number of
    processes, all processes share the rows of the remaining ones. So the parts are disjoint, complete and of about the
    same size, also for a process without a whole shard. With shuffling, the shards are in a different order in each
    epoch, a function of the seed and the epoch.

    Args:
        state: from `state()`; None to start at the beginning.
    """

    def __init__(self, stream: TokenStream, state: dict | None = None):
        self.stream = stream
        self._position = Position() if state is None else state["position"]  # after the pending documents
        self._pending: list[Document | None] = [] if state is None else state["pending"]
        self._next = 0  # index into the pending documents
        self._tasks = map_in_threads(self._encode, self._read(self._position), stream.num_workers)

    def __next__(self) -> Document | None:
        while self._next == len(self._pending):
            encoded, self._position, ends_epoch = next(self._tasks)
            self._pending = [*_documents_of(encoded), *([None] if ends_epoch else [])]
            self._next = 0
        self._next += 1
        return self._pending[self._next - 1]

    def state(self) -> dict:
        """Where to continue after the last document returned. Later calls of `next` do not change it."""
        return {"position": self._position, "pending": self._pending[self._next :]}

    def close(self) -> None:
        """Stop the threads."""
        self._tasks.close()

    def _encode(self, task: tuple[list[str], Position, bool, bool]) -> tuple[Encoded, Position, bool]:
        texts, position, ends_epoch, is_first = task
        encoder = self.stream.encoder
        compared = documents_to_compare(texts, hash(position), 0, is_first=is_first)
        try:
            return encoder(texts, compared), position, ends_epoch
        except EncodersDiffer as difference:
            if encoder.fast is not None:  # the first of the threads
                refuse(encoder, self.stream.refusal_file, self.stream.documents.source, difference.text)
            return encoder(texts), position, ends_epoch

    def _read(self, position: Position) -> Iterator[tuple[list[str], Position, bool, bool]]:
        """Texts, the position after them, whether they end an epoch, and whether they are the first ones."""
        is_first = True
        is_empty = position == (position.epoch, 0, 0)  # no text in this epoch so far; not known if resumed within it
        while True:
            epoch, first_shard, first_row = position
            shards = self._shards(epoch)
            texts, characters = [], 0
            for shards_done in range(first_shard, len(shards)):
                shard, step, remainder = shards[shards_done]
                first_row = first_row if shards_done == first_shard else 0
                for next_row, rows in self.stream.documents.read(shard, first_row, step, remainder):
                    found = [text for text in read_texts(rows, self.stream.document_text) if text is not None]
                    is_empty &= not found
                    texts += found
                    characters += sum(map(len, found))
                    if characters > CHARACTERS_PER_TASK:
                        yield texts, Position(epoch, shards_done, next_row), False, is_first
                        texts, characters, is_first = [], 0, False
            if is_empty:
                num_processes = self.stream.documents.num_processes
                raise UsageError(
                    f"{self.stream.documents.source}: there is no document to train on"
                    + (f" for each of {num_processes} processes" if num_processes > 1 else "")
                )
            position, is_empty = Position(epoch + 1), True
            yield texts, position, True, is_first
            is_first = False

    def _shards(self, epoch: int) -> list[tuple[int, int, int]]:
        """What this process reads in an epoch: shards, each with the step and remainder of its rows; see `read`."""
        documents = self.stream.documents
        shards = np.arange(documents.num_shards)
        if documents.shuffle_buffer_size:
            shards = rng.shard_generator(documents.seed, epoch).permutation(shards)
        num_whole = len(shards) // documents.num_processes * documents.num_processes
        whole = shards[:num_whole][documents.process_index :: documents.num_processes]
        own_rows = (documents.num_processes, documents.process_index)
        return [*((int(shard), 1, 0) for shard in whole), *((int(shard), *own_rows) for shard in shards[num_whole:])]


class ShuffledDocuments:
    """Documents in random order: each is drawn from a buffer of `shuffle_buffer_size`, and replaced by the next one.

    All documents of an epoch come before its None, and so before those of the next epoch. The order is a function of
    the seed, the epoch and the process. With a buffer size of 0 the documents stay in order.

    Args:
        state: from `state()`; None to start at the beginning.
    """

    def __init__(self, stream: TokenStream, state: dict | None = None):
        self.source = TokenizedDocuments(stream, state and state["source"])
        self._documents = stream.documents
        self._buffer: list[Document] = [] if state is None else list(state["buffer"])
        self._is_draining = state is not None and state["is_draining"]  # the source has reached the end of the epoch
        self._epoch = 0 if state is None else state["epoch"]
        self._num_drawn = 0 if state is None else state["num_drawn"]  # in this epoch
        self._chunk = (None, np.empty(0))  # (epoch, number) of a chunk of draws, and the draws

    def __next__(self) -> Document | None:
        if self._documents.shuffle_buffer_size == 0:
            return next(self.source)
        while not self._is_draining:
            document = next(self.source)
            if document is None:
                self._is_draining = True
            elif len(self._buffer) < self._documents.shuffle_buffer_size:
                self._buffer.append(document)
            else:
                place = self._draw()
                drawn, self._buffer[place] = self._buffer[place], document
                return drawn
        if self._buffer:
            place = self._draw()
            self._buffer[place], self._buffer[-1] = self._buffer[-1], self._buffer[place]
            return self._buffer.pop()
        self._is_draining, self._num_drawn = False, 0
        self._epoch += 1
        return None

    def state(self) -> dict:
        """As TokenizedDocuments.state. It takes microseconds, since no document is copied."""
        return {
            "source": self.source.state(),
            "buffer": list(self._buffer),
            "is_draining": self._is_draining,
            "epoch": self._epoch,
            "num_drawn": self._num_drawn,
        }

    def _draw(self) -> int:
        """A random index into the buffer."""
        number, place = divmod(self._num_drawn, DRAWS_PER_CHUNK)
        if self._chunk[0] != (self._epoch, number):
            documents = self._documents
            generator = rng.buffer_generator(documents.seed, self._epoch, documents.process_index, number)
            self._chunk = ((self._epoch, number), generator.random(DRAWS_PER_CHUNK))
        self._num_drawn += 1
        return int(self._chunk[1][place] * len(self._buffer))


def _documents_of(encoded: Encoded) -> list[Document]:
    """The documents of a task that have a token. Copies, since views would keep the whole task in memory."""
    ends = np.cumsum(encoded.lengths)
    segment_ends = None
    if encoded.segment_lengths is not None:
        segment_ends = np.searchsorted(np.cumsum(encoded.segment_lengths), ends, side="right")
    documents = []
    first_segment = 0
    for i, (start, end) in enumerate(zip(ends - encoded.lengths, ends, strict=True)):
        word_starts = None if encoded.word_starts is None else encoded.word_starts[start:end].copy()
        segments = None
        if segment_ends is not None:
            segments = encoded.segment_lengths[first_segment : segment_ends[i]].copy()
            first_segment = segment_ends[i]
        if end > start:
            documents.append(Document(encoded.tokens[start:end].copy(), word_starts, segments))
    return documents


def num_threads(num_workers: int | None) -> int:
    """`num_workers`, or by default this process's share of the cores."""
    cores = len(os.sched_getaffinity(0))
    return num_workers or max(cores // (local_world_size() or 1), 1)
