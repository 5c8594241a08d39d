"""Packed blocks: every token of the corpus, in order, across the ends of documents."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.errors import UsageError
from utils.tokens.token_store import TokenStore


logger = logging.getLogger(__name__)


class PackedBlocks(Dataset):
    """A corpus as blocks of `block_size` consecutive tokens; the last one, which is shorter, is kept.

    Block i is the slice `tokens[i * block_size:(i + 1) * block_size]` of the memory-mapped store: nothing is copied
    before a batch is made, so another block size costs nothing. Blocks run across the ends of documents.

    Args:
        store: the tokens of the corpus.
        block_size: tokens in a block, at least 2.
        max_blocks: only the first so many blocks.
    """

    cuts_documents = True  # so that of a part of a corpus the last tokens go with those of the next part
    min_documents = 1  # that a part of a corpus must have

    def __init__(self, store: TokenStore, block_size: int, max_blocks: int | None = None):
        self.store = store
        self.block_size = block_size
        num_blocks = -(-len(store.tokens) // self.content_size)
        self.num_blocks = num_blocks if max_blocks is None else min(num_blocks, max_blocks)
        self.num_tokens = min(self.num_blocks * self.content_size, len(store.tokens))

    @property
    def content_size(self) -> int:
        """How many tokens of the corpus fill a block."""
        return self.block_size

    def span(self, index: int) -> slice:
        """Where block `index` lies among the tokens of the store."""
        if not 0 <= index < self.num_blocks:
            raise IndexError(index)
        return slice(index * self.content_size, (index + 1) * self.content_size)

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`input_ids`: (at most block_size,), the store's dtype, a view of the file."""
        return {"input_ids": self.store.tokens[self.span(index)]}

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
        """The examples of a batch, which torch's DataLoader fetches in one call."""
        return [self[index] for index in indices]

    @property
    def target_bytes(self) -> int | None:
        """UTF-8 bytes of all tokens but the first of each block, which nothing predicts; None if not stored."""
        if self.store.token_bytes is None:
            return None
        token_bytes = self.store.token_bytes[: self.num_tokens]
        return int(token_bytes.sum(dtype=np.int64)) - int(token_bytes[:: self.block_size].sum(dtype=np.int64))


class PackedBlocksWithSpecialTokens(PackedBlocks):
    """Packed blocks between the special tokens that the model expects around a text, for random masks.

    The full-sentences format of RoBERTa (Liu et al. 2019, section 4.2): [CLS] tokens [SEP], the tokens running across
    the ends of documents. The store holds them without special tokens. Every token of the corpus is in one block.

    Args:
        store: the tokens of the corpus, tokenized with `add_special_tokens=False`.
        block_size: tokens in a block, the frame included.
        frame: the ids before and after the content, from `utils.tokens.tokenizer.special_token_affixes`.
        max_blocks: only the first so many blocks.

    Raises:
        UsageError: a block size that leaves no room within the frame.
    """

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        frame: tuple[Sequence[int], Sequence[int]],
        max_blocks: int | None = None,
    ):
        self.prefix, self.suffix = (np.array(ids, dtype=store.tokens.dtype) for ids in frame)
        num_added = len(self.prefix) + len(self.suffix)
        if block_size <= num_added:
            raise UsageError(
                f"--max_seq_length {block_size} leaves no room beside the {num_added} special tokens of each "
                f"example: give {num_added + 1} or more"
            )
        # In shared memory: the workers of a dataloader that outlive an epoch see the next one too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.numbering = (0, 1)  # example i is number `first + i * step` of the epoch, a pair (first, step)
        super().__init__(store, block_size, max_blocks)

    @property
    def content_size(self) -> int:
        """How many tokens of the corpus fill a block, the frame left out."""
        return self.block_size - len(self.prefix) - len(self.suffix)

    def set_epoch(self, epoch: int) -> None:
        """Tell the examples which epoch of the training it is; without this call, as in evaluation, it is 0."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """An example.

        Returns:
            `input_ids`: (at most block_size,), the store's dtype; `index` and `epoch`, which with the seed decide
            the random choices about this example: its number in the epoch, and the epoch's; `word_starts`, uint8 of
            the same shape, if the store has them, each token of the frame being a word of its own.
        """
        span = self.span(index)
        example = {
            "input_ids": np.concatenate([self.prefix, self.store.tokens[span], self.suffix]),
            "index": self.numbering[0] + index * self.numbering[1],
            "epoch": int(self._epoch),
        }
        if self.store.word_starts is not None:
            starts = np.ones(len(example["input_ids"]), dtype=np.uint8)
            content = self.store.word_starts[span]
            starts[len(self.prefix) + 1 : len(self.prefix) + len(content)] = content[1:]
            example["word_starts"] = starts
        return example


def require_one_block(blocks: PackedBlocks) -> None:
    """Refuse an evaluation corpus that does not fill one block: its figures would be of another, shorter context."""
    num_tokens = len(blocks.store.tokens)
    if num_tokens < blocks.content_size:
        block_size = num_tokens + blocks.block_size - blocks.content_size
        raise UsageError(
            f"the validation corpus has {num_tokens:,} tokens, less than one block of {blocks.content_size:,}: give "
            f"--block_size {max(block_size, 2)} or less, or more text"
        )
