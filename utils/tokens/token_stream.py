"""A stream of documents -> a stream of token ids, made in threads beside the training, shuffled, from any place on."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.environment import local_world_size
from utils.errors import UsageError
from utils.text.document_stream import DocumentStream
from utils.tokens.encoder import Encoded, Encoder, map_in_threads


CHARACTERS_PER_TASK = 200_000  # a thread is busy for 20 ms with them
SHUFFLE_STREAM, DRAWS_PER_KEY = 2, 4096  # see ShuffledDocuments; collators draw from stream 0, pairs from 1


class Document(NamedTuple):
    """The token ids of a document, an array of its own."""

    tokens: np.ndarray  # uint16 or uint32, (tokens,)
    word_starts: np.ndarray | None  # uint8, (tokens,)
    segment_lengths: np.ndarray | None  # int64, (segments,)


class Position(NamedTuple):
    """Where reading goes on."""

    epoch: int = 0
    turn: int = 0  # which of the shards of this process
    row: int = 0  # of that shard


@dataclass(frozen=True)
class TokenStream:
    """What the training text is tokenized with while it is read; see `tokenize_documents`.

    Args:
        documents: to be trained on.
        encoder: texts -> ids.
        document_text: what the model reads of a row; None leaves the row out.
        num_workers: threads that tokenize.
        fingerprint: what decides the tokens.
    """

    documents: DocumentStream
    encoder: Encoder
    document_text: Callable[[dict], str | None]
    num_workers: int
    fingerprint: str


class TokenizedDocuments:
    """The documents of one process, epoch after epoch, with None after the last one of each epoch.

    Where the number of shards is no multiple of the number of processes, each process reads as many whole shards as
    the others, and its share of the rows of the few that are left. So the parts are disjoint, complete and about
    equal, and a process without a shard of its own has its share too. With shuffling on, the order of the shards is
    another one each epoch, a function of the seed and the epoch.

    Args:
        state: from `state()`; None to begin at the beginning.
    """

    def __init__(self, stream: TokenStream, state: dict | None = None):
        self.stream = stream
        self._position = Position() if state is None else state["position"]  # after the pending documents
        self._pending: list[Document | None] = [] if state is None else state["pending"]
        self._next = 0  # of the pending ones
        self._tasks = map_in_threads(self._encode, self._read(self._position), stream.num_workers)

    def __next__(self) -> Document | None:
        while self._next == len(self._pending):
            encoded, self._position, is_end = next(self._tasks)
            self._pending = [*_documents_of(encoded), *([None] if is_end else [])]
            self._next = 0
        self._next += 1
        return self._pending[self._next - 1]

    def state(self) -> dict:
        """What goes on after the last document that was given out; later calls of `next` do not change it."""
        return {"position": self._position, "pending": self._pending[self._next :]}

    def close(self) -> None:
        """Stop the threads."""
        self._tasks.close()

    def _encode(self, task: tuple[list[str], Position, bool]) -> tuple[Encoded, Position, bool]:
        texts, position, is_end = task
        return self.stream.encoder(texts), position, is_end

    def _read(self, position: Position) -> Iterator[tuple[list[str], Position, bool]]:
        """Texts, where reading goes on after them, and whether they end an epoch."""
        is_empty = position == (position.epoch, 0, 0)  # is there no text in this epoch? Not known if it began before.
        while True:
            epoch, first_turn, first_row = position
            turns = self._turns(epoch)
            texts, characters = [], 0
            for turn in range(first_turn, len(turns)):
                shard, step, rest = turns[turn]
                first_row = first_row if turn == first_turn else 0
                for next_row, rows in self.stream.documents.read(shard, first_row, step, rest):
                    found = [text for text in map(self.stream.document_text, rows) if text is not None]
                    is_empty &= not found
                    texts += found
                    characters += sum(map(len, found))
                    if characters > CHARACTERS_PER_TASK:
                        yield texts, Position(epoch, turn, next_row), False
                        texts, characters = [], 0
            if is_empty:
                raise UsageError(
                    f"{self.stream.documents.source}: there is no document to train on"
                    + (f" for each of {n} processes" if (n := self.stream.documents.num_processes) > 1 else "")
                )
            position, is_empty = Position(epoch + 1), True
            yield texts, position, True

    def _turns(self, epoch: int) -> list[tuple[int, int, int]]:
        """What this process reads in an epoch: shards, each with (step, rest) as `DocumentStream.read` has them."""
        documents = self.stream.documents
        shards = np.arange(documents.num_shards)
        if documents.shuffle_buffer_size:
            shards = _generator(documents.seed, epoch, 0, 0).permutation(shards)
        num_whole = len(shards) // documents.num_processes * documents.num_processes
        whole = shards[:num_whole][documents.process_index :: documents.num_processes]
        shared = shards[num_whole:]
        own = (documents.num_processes, documents.process_index)
        return [*((int(shard), 1, 0) for shard in whole), *((int(shard), *own) for shard in shared)]


class ShuffledDocuments:
    """Documents in another order: each drawn from `shuffle_buffer_size` of them, and the next one put in its place.

    All documents of an epoch are given out before None, and so before those of the next one. What is drawn is a
    function of the seed, the epoch, the process and the number of documents before it. With a size of 0 the order
    stays.

    Args:
        state: from `state()`; None to begin at the beginning.
    """

    def __init__(self, stream: TokenStream, state: dict | None = None):
        self.source = TokenizedDocuments(stream, state and state["source"])
        self._documents = stream.documents
        self._buffer: list[Document] = [] if state is None else list(state["buffer"])
        self._is_draining = state is not None and state["is_draining"]  # has the source come to the epoch's end?
        self._epoch = 0 if state is None else state["epoch"]
        self._num_drawn = 0 if state is None else state["num_drawn"]
        self._draws = (None, np.empty(0))  # some draws, and what they are of

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
        """As TokenizedDocuments.state; it takes microseconds, since documents are not copied."""
        return {
            "source": self.source.state(),
            "buffer": list(self._buffer),
            "is_draining": self._is_draining,
            "epoch": self._epoch,
            "num_drawn": self._num_drawn,
        }

    def _draw(self) -> int:
        number, place = divmod(self._num_drawn, DRAWS_PER_KEY)
        key = (self._documents.seed, self._epoch, 1 + self._documents.process_index, number)
        if self._draws[0] != key:
            self._draws = (key, _generator(*key).random(DRAWS_PER_KEY))
        self._num_drawn += 1
        return int(self._draws[1][place] * len(self._buffer))


def _generator(seed: int, epoch: int, *counter: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, SHUFFLE_STREAM, *counter]))


def _documents_of(encoded: Encoded) -> list[Document]:
    """Copies, so that no document keeps those of its whole task in memory."""
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
    """So many as asked for, or else this process's share of the cores."""
    cores = len(os.sched_getaffinity(0))
    return num_workers or max(cores // (local_world_size() or 1), 1)
