"""Examples of a stream of token ids: those of a token store, window of documents after window."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UsageError
from utils.examples.base import Examples
from utils.examples.stream_state import STATE_FILE, read_state, write_state
from utils.rng import window_generator
from utils.tokens.token_store import TokenStore
from utils.tokens.token_stream import Document, ShuffledDocuments, TokenStream


WINDOW_TOKENS = 2**17  # 256 KiB; a window has at least as many, unless the epoch is shorter


def make_blocks(blocks_class: type[Examples], tokens: TokenStore | TokenStream, *args, **kwargs) -> Examples:
    """`blocks_class(tokens, *args, **kwargs)` for a token store, and a BlockStream of such blocks for a stream."""
    if isinstance(tokens, TokenStream):
        return BlockStream(tokens, blocks_class, *args, **kwargs)
    return blocks_class(tokens, *args, **kwargs)


@dataclass
class TokenWindow:
    """Some documents of a stream, with the attributes of a TokenStore that examples are read from."""

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


class BlockStream(Examples):
    """The blocks of a stream, epoch after epoch without end; each process has those of its own part.

    Without shuffling, the blocks of a single process are the same as from a token store of the same text, and so are
    their random choices, which depend on the number of a block in its epoch. With shuffling, each epoch has the
    documents in a different order, and the blocks of a window are shuffled too.

    Args:
        tokens: from `tokenize_documents`.
        blocks_class: the examples of a window of documents.
        args, kwargs: the arguments of `blocks_class` after the store; the first is the block size.
    """

    def __init__(self, tokens: TokenStream, blocks_class: type[Examples], *args, **kwargs):
        super().__init__(block_size=args[0], stores=[], num_examples=None)
        self.tokens = tokens
        self.blocks_class = blocks_class
        self.blocks_of: Callable[[TokenWindow], Examples] = lambda window: blocks_class(window, *args, **kwargs)
        self.state: dict | None = None  # where to continue after the last batch used; None at the beginning

    @property
    def epoch(self) -> int:
        """How many epochs this process has finished, as of the last batch used."""
        return 0 if self.state is None else self.state["epoch"]

    def set_epoch(self, epoch: int) -> None:
        """No effect: a stream counts its epochs itself."""

    def __iter__(self) -> "BlockIterator":
        return BlockIterator(self, self.state)

    def save_state(self, folder: str | Path) -> None:
        """Write this process's part of a checkpoint: where to continue after the last batch used."""
        write_state(Path(folder), self.tokens.documents.process_index, self.state or {}, self._identity())

    def load_state(self, folder: str | Path) -> None:
        """Continue where the run that wrote the checkpoint was.

        Raises:
            UsageError: the number of processes, the text, the tokenizer or the block size has changed.
        """
        documents = self.tokens.documents
        num_processes = len(list(Path(folder).glob(STATE_FILE.format("*"))))
        if num_processes != documents.num_processes:
            raise UsageError(
                f"{folder} was written without --streaming: leave it out, or --overwrite_output_dir to start over"
                if num_processes == 0
                else f"{folder} was written by {num_processes} processes, each with its own part of the stream; now "
                f"there are {documents.num_processes}: start {num_processes} processes"
            )
        self.state, identity = read_state(Path(folder), documents.process_index)
        changed = [name for name, value in self._identity().items() if identity[name] != value]
        if changed:
            raise UsageError(
                f"{folder}: {' and '.join(changed)} changed since it was written, so the stream cannot be continued "
                "from there: undo that, or --overwrite_output_dir to start over"
            )

    def _identity(self) -> dict:
        """What a state depends on, named for the user. The names are part of the format of checkpoints."""
        documents = self.tokens.documents
        return {
            "the text, document_text or the tokenizer": self.tokens.fingerprint,
            "--block_size": self.block_size,
            "--shuffle_buffer_size": documents.shuffle_buffer_size,
            "--seed": documents.seed,
            "what an example is": self.blocks_class.__name__,
        }


class BlockIterator:
    """Iterates over the blocks of a stream, and can be resumed at any of them.

    Documents are gathered until they fill two windows; then the first window is cut into blocks. So the last window of
    an epoch is not smaller than the others. If blocks cut documents, the tokens at the end of a window that do not
    fill a block are carried over to the next window.
    """

    def __init__(self, stream: BlockStream, state: dict | None):
        self.stream = stream
        state = state or {"documents": None, "gathered": [], "window": [], "is_last": True}
        state = {"epoch": -1, "window_number": -1, "first_number": 0, "next_example": 0} | state
        self.documents = ShuffledDocuments(stream.tokens, state["documents"])
        self._gathered: list[Document] = state["gathered"]  # for the windows after this one
        self._window: list[Document] = state["window"]  # starting with what was carried over
        self._is_last: bool = state["is_last"]  # window of its epoch
        self._epoch: int = state["epoch"]
        self._window_number: int = state["window_number"]  # in the epoch
        self._first_number: int = state["first_number"]  # of the window's examples, in this part of the epoch
        self._next_example: int = state["next_example"]  # of the window
        self._num_gathered_tokens = sum(len(document.tokens) for document in self._gathered)
        self._num_examples = 0  # of the window
        self._carried_over: list[Document] = []  # from this window to the next one
        if self._window:
            self._open_window()

    def __iter__(self) -> "BlockIterator":
        return self

    def __next__(self) -> dict:
        while self._next_example == self._num_examples:
            self._advance()
        self._next_example += 1
        return self._blocks[int(self._order[self._next_example - 1])]

    def state(self) -> dict:
        """Where to continue after the last example returned. It takes microseconds, since nothing is copied."""
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

    def _advance(self) -> None:
        """Go to the next window, which may be the first one of the next epoch."""
        self._first_number += self._num_examples
        self._window_number += 1
        if self._is_last:
            if self._epoch >= 0 and self._first_number == 0:
                raise UsageError(f"{self.stream.tokens.documents.source}: not one token to train on")
            self._epoch, self._window_number, self._first_number = self._epoch + 1, 0, 0
        self._is_last = self._gather()
        self._window = self._carried_over + self._take_window()
        self._next_example = 0
        self._open_window()

    def _gather(self) -> bool:
        """Gather documents for two windows. Returns whether the epoch ended before."""
        while not self._are_enough(len(self._gathered), self._num_gathered_tokens, num_windows=2):
            document = next(self.documents)
            if document is None:
                return True
            self._gathered.append(document)
            self._num_gathered_tokens += len(document.tokens)
        return False

    def _take_window(self) -> list[Document]:
        """Remove from the gathered documents those of the next window: all if it is the last one of the epoch."""
        count = num_tokens = 0
        while count < len(self._gathered) and (self._is_last or not self._are_enough(count, num_tokens, 1)):
            num_tokens += len(self._gathered[count].tokens)
            count += 1
        taken, self._gathered = self._gathered[:count], self._gathered[count:]
        self._num_gathered_tokens -= num_tokens
        return taken

    def _are_enough(self, num_documents: int, num_tokens: int, num_windows: int) -> bool:
        min_documents = self.stream.blocks_class.min_documents
        return num_tokens >= num_windows * WINDOW_TOKENS and num_documents >= num_windows * min_documents

    def _open_window(self) -> None:
        """Cut the window into blocks, number them and draw their order."""
        self._num_examples, self._carried_over = 0, []
        if not self._window:
            return
        documents = self.stream.tokens.documents
        tokens = TokenWindow.of(self._window)
        self._blocks = self.stream.blocks_of(tokens)
        self._num_examples = len(self._blocks)
        if self._blocks.cuts_documents and not self._is_last:
            self._num_examples = len(tokens.tokens) // self._blocks.content_size
            self._carried_over = _documents_from(tokens, self._num_examples * self._blocks.content_size)
        # The processes number their examples alternately.
        step = documents.num_processes
        self._blocks.set_numbering(self._epoch, self._first_number * step + documents.process_index, step)
        self._order = np.arange(self._num_examples)
        if documents.shuffle_buffer_size:
            generator = window_generator(documents.seed, self._epoch, documents.process_index, self._window_number)
            self._order = generator.permutation(self._num_examples)


def _documents_from(window: TokenWindow, start: int) -> list[Document]:
    """The tokens of a window from `start` on, as a list of one document, or none. Copies: the window can be freed."""
    if start == len(window.tokens):
        return []
    words = None if window.word_starts is None else window.word_starts[start:].copy()
    return [Document(window.tokens[start:].copy(), words, None)]


def _offsets(lengths: np.ndarray | list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
