"""Packed blocks: every token of the corpus, in order, across the ends of documents."""

from collections.abc import Sequence

import numpy as np

from utils.errors import UsageError
from utils.examples.base import Examples
from utils.tokens.token_store import TokenStore


class PackedBlocks(Examples):
    """A corpus as blocks of `block_size` consecutive tokens; the last block may be shorter.

    Block i is the slice `tokens[i * block_size : (i + 1) * block_size]` of the memory-mapped store. Nothing is copied
    before a batch is collated, so another block size costs nothing. Blocks run across the ends of documents.

    Args:
        store: the tokens of the corpus.
        block_size: tokens in a block, at least 2.
        max_blocks: keep only this many blocks, the first ones.

    Attributes:
        num_tokens: tokens of the corpus in all blocks.
    """

    cuts_documents = True

    def __init__(self, store: TokenStore, block_size: int, max_blocks: int | None = None):
        super().__init__(block_size, [store])
        self.store = store
        num_blocks = -(-len(store.tokens) // self.content_size)
        self.num_examples = num_blocks if max_blocks is None else min(num_blocks, max_blocks)
        self.num_tokens = min(self.num_examples * self.content_size, len(store.tokens))

    @property
    def content_size(self) -> int:
        """Tokens of the corpus in a full block."""
        return self.block_size

    def span(self, index: int) -> slice:
        """The tokens of the store that are in a block. Raises IndexError if there is no such block."""
        self._require(index)
        return slice(index * self.content_size, (index + 1) * self.content_size)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`input_ids`: (at most block_size,), the store's dtype, a view of the file."""
        return {"input_ids": self.store.tokens[self.span(index)]}

    @property
    def target_bytes(self) -> int | None:
        """UTF-8 bytes of all tokens but the first of each block, which is no target; None if not stored."""
        if self.store.token_bytes is None:
            return None
        token_bytes = self.store.token_bytes[: self.num_tokens]
        return int(token_bytes.sum(dtype=np.int64)) - int(token_bytes[:: self.block_size].sum(dtype=np.int64))


class PackedBlocksWithSpecialTokens(PackedBlocks):
    """Packed blocks between the special tokens that the model expects around a text, for random targets.

    The full-sentences format of RoBERTa (Liu et al. 2019, section 4.2): [CLS] tokens [SEP], where the tokens run
    across the ends of documents. The store holds the tokens without special tokens; each of them is in one block.

    Args:
        store: the tokens of the corpus, tokenized with `add_special_tokens=False`.
        block_size: tokens in a block, special tokens included.
        prefix_and_suffix: the ids of the special tokens before and after the text, from
            `utils.tokens.tokenizer.special_token_affixes`.
        max_blocks: keep only this many blocks, the first ones.

    Raises:
        UsageError: the block size leaves no room between the special tokens.
    """

    target_bytes = None  # each epoch draws other targets

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        prefix_and_suffix: tuple[Sequence[int], Sequence[int]],
        max_blocks: int | None = None,
    ):
        self.prefix, self.suffix = (np.array(ids, dtype=store.tokens.dtype) for ids in prefix_and_suffix)
        num_special = len(self.prefix) + len(self.suffix)
        if block_size <= num_special:
            raise UsageError(
                f"--block_size {block_size} leaves no room for text beside the {num_special} special tokens of each "
                f"example: give {num_special + 1} or more"
            )
        super().__init__(store, block_size, max_blocks)

    @property
    def content_size(self) -> int:
        """Tokens of the corpus in a full block, without special tokens."""
        return self.block_size - len(self.prefix) - len(self.suffix)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """An example.

        Returns:
            `input_ids`: (at most block_size,), the store's dtype; `index`, the number of the example in the epoch, and
            `epoch`, which decide its random choices together with the seed; `word_starts`, uint8 of the shape of
            `input_ids`, if the store has them: special tokens, and the first token after the prefix, begin a word.
        """
        span = self.span(index)
        example = {
            "input_ids": np.concatenate([self.prefix, self.store.tokens[span], self.suffix]),
            "index": self.number(index),
            "epoch": self.epoch,
        }
        if self.store.word_starts is not None:
            starts = np.ones(len(example["input_ids"]), dtype=np.uint8)
            content = self.store.word_starts[span]
            starts[len(self.prefix) + 1 : len(self.prefix) + len(content)] = content[1:]
            example["word_starts"] = starts
        return example


def require_one_block(blocks: PackedBlocks | None) -> None:
    """Raise UsageError if the validation corpus does not fill one block: its metrics would be of a shorter context."""
    if blocks is None or not blocks.cuts_documents:  # no evaluation, or one document per example
        return
    num_tokens = len(blocks.store.tokens)
    if num_tokens < blocks.content_size:
        block_size = num_tokens + blocks.block_size - blocks.content_size
        raise UsageError(
            f"the validation corpus has {num_tokens:,} tokens, less than one block of {blocks.content_size:,}: give "
            f"--block_size {max(block_size, 2)} or less, or more text"
        )
