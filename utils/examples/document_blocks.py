"""One document per example."""

import logging
from collections.abc import Sequence

import numpy as np

from utils.examples.packed import PackedBlocksWithSpecialTokens
from utils.tokens.token_store import TokenStore


logger = logging.getLogger(__name__)


class DocumentBlocks(PackedBlocksWithSpecialTokens):
    """One example for each document that has a token, framed, and cut where it is longer than `block_size`.

    The log says how many tokens of a token store were cut off. Args: as for PackedBlocksWithSpecialTokens.
    """

    cuts_documents = False

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        frame: tuple[Sequence[int], Sequence[int]],
        max_blocks: int | None = None,
    ):
        super().__init__(store, block_size, frame)
        lengths = np.diff(store.offsets)
        self._documents = np.flatnonzero(lengths)[:max_blocks]
        lengths = lengths[self._documents]
        contents = np.minimum(lengths, self.content_size)
        self.num_blocks = len(contents)
        self.num_tokens = int(contents.sum())
        self.lengths = contents + len(self.prefix) + len(self.suffix)
        num_cut = int(lengths.sum()) - self.num_tokens
        if isinstance(store, TokenStore):
            logger.info(
                "line by line: %s examples; %s tokens of %s of them cut off by --max_seq_length %s",
                f"{len(lengths):,}", f"{num_cut:,}", f"{np.count_nonzero(lengths > self.content_size):,}", block_size,
            )  # fmt: skip

    def span(self, index: int) -> slice:
        """Where example `index` lies among the tokens of the store."""
        if not 0 <= index < self.num_blocks:
            raise IndexError(index)
        start, end = self.store.offsets[self._documents[index] :][:2].tolist()
        return slice(start, min(end, start + self.content_size))
