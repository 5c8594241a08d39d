"""Random tokens as blocks, with a tokenizer to match. No text is read or tokenized."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from utils.examples.packed import PackedBlocks, PackedBlocksWithSpecialTokens
from utils.tokens.tokenizer import special_token_affixes


CAUSAL_SPECIAL_TOKENS = {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
MASKED_SPECIAL_TOKENS = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"
}  # fmt: skip


@dataclass
class RandomTokens:
    """Random tokens with the attributes of a TokenStore that blocks read."""

    tokens: np.ndarray  # uint16 or uint32 of shape (tokens,), memory-mapped as those of a TokenStore
    token_bytes: None = None
    word_starts: None = None


def random_tokens(num_tokens: int, vocab_size: int, seed: int, file: Path, first_id: int = 0) -> RandomTokens:
    """Write random tokens to `file`. Their frequencies follow Zipf's law, so there is something to learn.

    Args:
        first_id: the smallest id to draw; those below are special tokens.
    """
    tokens = first_id + np.random.default_rng(seed).zipf(1.3, num_tokens) % (vocab_size - first_id)
    dtype = np.dtype("uint16" if vocab_size <= 2**16 else "uint32")
    tokens.astype(dtype).tofile(file)
    return RandomTokens(np.memmap(file, dtype, mode="r"))


def numbered_tokenizer(vocab_size: int, special_tokens: dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose first tokens are the special ones, with ids from 0; the other tokens are numbers."""
    names = list(dict.fromkeys(special_tokens.values()))
    vocab = {token: index for index, token in enumerate([*names, *map(str, range(len(names), vocab_size))])}
    model = models.WordLevel(vocab, unk_token=special_tokens["unk_token"])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special_tokens)


def blocks_with_special_tokens(
    tokenizer: PreTrainedTokenizerFast, num_blocks: int, block_size: int, seed: int, file: Path
) -> PackedBlocksWithSpecialTokens:
    """Full blocks of random tokens between [CLS] and [SEP]."""
    affixes = special_token_affixes(tokenizer)
    num_tokens = num_blocks * (block_size - sum(map(len, affixes)))
    num_special = len(MASKED_SPECIAL_TOKENS)
    tokens = random_tokens(num_tokens, len(tokenizer), seed, file, first_id=num_special)
    return PackedBlocksWithSpecialTokens(tokens, block_size, affixes)


def as_dataset(input_ids: Sequence[list[int]], labels: Sequence[list[int]]) -> Dataset:
    """Rows as transformers' example scripts store them, with an attention mask of ones."""
    attention_mask = [[1] * len(ids) for ids in input_ids]
    return Dataset.from_dict({"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels})


def causal_dataset(blocks: PackedBlocks) -> Dataset:
    """The rows that `group_texts` of transformers' run_clm.py makes of the same tokens."""
    input_ids = [blocks[index]["input_ids"].tolist() for index in range(len(blocks))]
    return as_dataset(input_ids, labels=input_ids)
