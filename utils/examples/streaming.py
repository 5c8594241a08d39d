"""A stream of token ids -> blocks: those of a token store, over one window of documents after another."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset

from utils.errors import UsageError
from utils.examples.packed import PackedBlocks
from utils.examples.sentence_pairs import Pairs
from utils.examples.stream_state import STATE_FILE, read_state, write_state
from utils.tokens.token_store import TokenStore
from utils.tokens.token_stream import Document, ShuffledDocuments, TokenStream


WINDOW_TOKENS = 2**17  # the least that a window holds, but for a shorter epoch: 256 KiB
ORDER_STREAM = 3  # a word of Philox' counter, see utils/tokens/token_stream.py


def make_blocks(blocks_class: type[PackedBlocks | Pairs], tokens: TokenStore | TokenStream, *args, **kwargs):
    """The blocks of a token store, `blocks_class(tokens, *args, **kwargs)`, or those of a stream, a BlockStream."""
    if isinstance(tokens, TokenStream):
        return BlockStream(tokens, blocks_class, *args, **kwargs)
    return blocks_class(tokens, *args, **kwargs)


@dataclass
class TokenWindow:
    """Some documents with the attributes that a TokenStore has."""

    tokens: np.ndarray
    offsets: np.ndarray
    word_starts: np.ndarray | None
    segment_offsets: np.ndarray | None
    token_bytes: None = None

    @classmethod
    def of(cls, documents: list[Document]) -> "TokenWindow":
        tokens, word_starts, segment_lengths = zip(*documents, strict=True)
        return cls(
            tokens=np.concatenate(tokens),
            offsets=_offsets([len(ids) for ids in tokens]),
            word_starts=None if word_starts[0] is None else np.concatenate(word_starts),
            segment_offsets=None if segment_lengths[0] is None else _offsets(np.concatenate(segment_lengths)),
        )


class BlockStream(IterableDataset):
    """The blocks of a stream, epoch after epoch without an end, each process those of its own part.

    Without shuffling the blocks of one process are those that a token store of the same text has, and random choices
    about them, which depend on the number of a block in its epoch, are the same. With shuffling, the documents have
    another order each epoch, and the blocks of a window another one than their text.

    Args:
        tokens: from `tokenize_documents`.
        blocks_class: makes map-style blocks of a window of documents.
        args, kwargs: of the class, after the store; the first is the block size.
    """

    def __init__(self, tokens: TokenStream, blocks_class: type[PackedBlocks | Pairs], *args, **kwargs):
        self.tokens = tokens
        self.block_size: int = args[0]
        self.blocks_class = blocks_class
        self.blocks_of = lambda window: blocks_class(window, *args, **kwargs)
        self.state: dict | None = None  # what goes on after the last batch that was given out; None at the beginning

    @property
    def epoch(self) -> int:
        """How many epochs this process has finished, as of the last batch that was given out."""
        return 0 if self.state is None else self.state["epoch"]

    def __iter__(self) -> "StreamedBlocks":
        return StreamedBlocks(self, self.state)

    def save_state(self, folder: str | Path) -> None:
        """Write this process's part of a checkpoint: where to go on after the last batch that was given out."""
        write_state(Path(folder), self.tokens.documents.process_index, self.state or {}, self._identity())

    def load_state(self, folder: str | Path) -> None:
        """Go on where the run that wrote the checkpoint had been.

        Raises:
            UsageError: the checkpoint is of another number of processes, another text, tokenizer or block size.
        """
        documents = self.tokens.documents
        num_processes = len(list(Path(folder).glob(STATE_FILE.format("*"))))
        if num_processes != documents.num_processes:
            raise UsageError(
                f"{folder} was written without --streaming; leave it out, or --overwrite_output_dir to start anew"
                if num_processes == 0
                else f"{folder} was written by {num_processes} processes, each of which had its own part of the "
                f"stream; there are {documents.num_processes} now: start as many as then"
            )
        self.state, identity = read_state(Path(folder), documents.process_index)
        changed = [flag for flag, value in self._identity().items() if identity[flag] != value]
        if changed:
            raise UsageError(
                f"{folder}: {' and '.join(changed)} changed since it was written, and the stream cannot go on where "
                "it was: restore that, or --overwrite_output_dir to start anew"
            )

    def _identity(self) -> dict:
        """What must be as it was for a state to have its meaning; each with a name for the user."""
        documents = self.tokens.documents
        return {
            "the text, document_text or the tokenizer": self.tokens.fingerprint,
            "--block_size": self.block_size,
            "--shuffle_buffer_size": documents.shuffle_buffer_size,
            "--seed": documents.seed,
            "what an example is": self.blocks_class.__name__,
        }


class StreamedBlocks:
    """Goes through the blocks of a stream, and knows how to go on from where it is.

    Documents are gathered until there are enough for two windows, and then cut into blocks by the window, so that what
    is left at the end of an epoch is no smaller than one. What a window leaves of its last document, less than a
    block, is the beginning of the next one.
    """

    def __init__(self, stream: BlockStream, state: dict | None):
        self.stream = stream
        state = state or {"documents": None, "gathered": [], "window": [], "is_last": True}
        state = {"epoch": -1, "window_number": -1, "first_number": 0, "next_example": 0} | state
        self.documents = ShuffledDocuments(stream.tokens, state["documents"])
        self._gathered: list[Document] = state["gathered"]
        self._window: list[Document] = state["window"]  # with what the last one left
        self._is_last: bool = state["is_last"]  # of its epoch
        self._epoch: int = state["epoch"]
        self._window_number: int = state["window_number"]  # in its epoch
        self._first_number: int = state["first_number"]  # of the window's examples, in the epoch
        self._next_example: int = state["next_example"]
        self._num_examples, self._rest = 0, None
        self._num_gathered = sum(len(document.tokens) for document in self._gathered)
        if self._window:
            self._open_window()

    def __iter__(self) -> "StreamedBlocks":
        return self

    def __next__(self) -> dict:
        while self._next_example == self._num_examples:
            self._next_window()
        self._next_example += 1
        return self._blocks[int(self._order[self._next_example - 1])]

    def state(self) -> dict:
        """What goes on after the last example that was given out. It takes microseconds: nothing is copied."""
        return {
            "documents": self.documents.state(),
            "gathered": list(self._gathered),
            "window": self._window,
            "is_last": self._is_last,
            "epoch": self._epoch,
            "window_number": self._window_number,
            "first_number": self._first_number,
            "next_example": self._next_example,
        }

    def _next_window(self) -> None:
        rest = [self._rest] if self._rest is not None else []
        self._first_number += self._num_examples
        if self._is_last:
            if self._epoch >= 0 and self._first_number == 0:
                raise UsageError(f"{self.stream.tokens.documents.source}: not one token to train on")
            self._epoch, self._window_number, self._first_number = self._epoch + 1, -1, 0
        is_end = False
        while not is_end and not self._holds_enough(len(self._gathered), self._num_gathered, num_windows=2):
            document = next(self.documents)
            is_end = document is None
            if not is_end:
                self._gathered.append(document)
                self._num_gathered += len(document.tokens)
        count = num_tokens = 0
        while count < len(self._gathered) and (is_end or not self._holds_enough(count, num_tokens, num_windows=1)):
            num_tokens += len(self._gathered[count].tokens)
            count += 1
        self._window = rest + self._gathered[:count]
        self._gathered = self._gathered[count:]
        self._num_gathered -= num_tokens
        self._is_last = is_end
        self._window_number += 1
        self._next_example = 0
        self._open_window()

    def _holds_enough(self, num_documents: int, num_tokens: int, num_windows: int) -> bool:
        min_documents = self.stream.blocks_class.min_documents
        return num_tokens >= num_windows * WINDOW_TOKENS and num_documents >= num_windows * min_documents

    def _open_window(self) -> None:
        documents = self.stream.tokens.documents
        self._num_examples, self._rest = 0, None
        if not self._window:
            return
        store = TokenWindow.of(self._window)
        self._blocks = self.stream.blocks_of(store)
        self._num_examples = len(self._blocks)
        if self._blocks.cuts_documents and not self._is_last:
            self._num_examples = len(store.tokens) // self._blocks.content_size
            start = self._num_examples * self._blocks.content_size
            words = None if store.word_starts is None else store.word_starts[start:].copy()
            if start < len(store.tokens):
                self._rest = Document(store.tokens[start:].copy(), words, None)
        step = documents.num_processes
        self._blocks.numbering = (self._first_number * step + documents.process_index, step)
        if hasattr(self._blocks, "set_epoch"):
            self._blocks.set_epoch(self._epoch)
        self._order = np.arange(self._num_examples)
        if documents.shuffle_buffer_size:
            counter = [0, ORDER_STREAM, documents.process_index, self._window_number]
            draws = np.random.Generator(np.random.Philox(key=[documents.seed, self._epoch], counter=counter))
            self._order = draws.permutation(self._num_examples)


class StreamLoader:
    """Batches of a stream, made in a thread beside the training.

    The thread is up to a window of tokens ahead, and waits then. `dataset.state` follows what was given out, not what
    was read ahead.

    Args:
        dataset: the stream.
        batch_size: examples in a batch.
        collate_fn: a list of examples -> a batch.
        num_batches: how many the whole training takes: the length.
        pin_memory: as torch's DataLoader.
    """

    def __init__(
        self, dataset: BlockStream, batch_size: int, collate_fn: Callable, num_batches: int, pin_memory: bool = False
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.collate_fn = collate_fn
        self.num_batches = num_batches
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches = queue.Queue(max(WINDOW_TOKENS // (self.batch_size * self.dataset.block_size), 4))
        is_closed = threading.Event()
        thread = threading.Thread(target=self._fill, args=(batches, is_closed), name="stream", daemon=True)
        thread.start()
        try:
            while True:
                made = batches.get()
                if isinstance(made, BaseException):
                    raise made
                batch, self.dataset.state = made
                yield batch
        finally:
            is_closed.set()
            while thread.is_alive():  # it may wait for room
                _empty(batches)
                thread.join(timeout=0.01)

    def _fill(self, batches: queue.Queue, is_closed: threading.Event) -> None:
        blocks = iter(self.dataset)
        try:
            while not is_closed.is_set():
                batch = self.collate_fn([next(blocks) for _ in range(self.batch_size)])
                if self.pin_memory:
                    batch = {name: values.pin_memory() for name, values in batch.items()}
                batches.put((batch, blocks.state()))
        except BaseException as error:  # whatever it is, it is raised where the batches are used
            batches.put(error)
        finally:
            blocks.documents.source.close()


def _empty(batches: queue.Queue) -> None:
    while True:
        try:
            batches.get_nowait()
        except queue.Empty:
            return


def _offsets(lengths: np.ndarray | list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
