"""One document per example."""

import logging
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from utils.examples.base import Examples
from utils.examples.packed import PackedBlocksWithSpecialTokens
from utils.examples.streaming import make_blocks
from utils.tokens.token_store import TokenStore
from utils.tokens.token_stream import TokenStream
from utils.tokens.tokenizer import special_token_affixes


logger = logging.getLogger(__name__)


def make_text_blocks(
    tokens: TokenStore | TokenStream,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    max_blocks: int | None,
    line_by_line: bool,
) -> Examples:
    """DocumentBlocks with `line_by_line`, otherwise PackedBlocksWithSpecialTokens; for a stream, a stream of them."""
    blocks_class = DocumentBlocks if line_by_line else PackedBlocksWithSpecialTokens
    return make_blocks(blocks_class, tokens, block_size, special_token_affixes(tokenizer), max_blocks)


class DocumentBlocks(PackedBlocksWithSpecialTokens):
    """One example for each document that has a token, between special tokens, truncated to `block_size`.

    Args: as for PackedBlocksWithSpecialTokens.
    """

    cuts_documents = False

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        prefix_and_suffix: tuple[Sequence[int], Sequence[int]],
        max_blocks: int | None = None,
    ):
        super().__init__(store, block_size, prefix_and_suffix)
        document_lengths = np.diff(store.offsets)
        self._documents = np.flatnonzero(document_lengths)[:max_blocks]
        document_lengths = document_lengths[self._documents]
        content_lengths = np.minimum(document_lengths, self.content_size)
        self.num_examples = len(content_lengths)
        self.num_tokens = int(content_lengths.sum())
        self.lengths = content_lengths + len(self.prefix) + len(self.suffix)
        if isinstance(store, TokenStore):  # not for each window of a stream
            num_cut_off = int(document_lengths.sum()) - self.num_tokens
            num_truncated = np.count_nonzero(document_lengths > self.content_size)
            logger.info(
                "one document per example: %s examples; %s tokens of %s of them cut off by --block_size %s",
                f"{self.num_examples:,}", f"{num_cut_off:,}", f"{num_truncated:,}", block_size,
            )  # fmt: skip

    def span(self, index: int) -> slice:
        """The tokens of the store that are in an example. Raises IndexError if there is no such example."""
        self._require(index)
        document = self._documents[index]
        start, end = self.store.offsets[document : document + 2].tolist()
        return slice(start, min(end, start + self.content_size))
