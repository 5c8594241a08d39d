"""Collators alone: ours on the arrays of packed blocks, transformers' on lists of token ids."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.measurement import interleaved, print_ratio, verdict
from benchmarks.synthetic import MASKED_SPECIAL_TOKENS, blocks_with_special_tokens, numbered_tokenizer


NUM_BATCHES = 20  # in each repetition
VOCAB_SIZE = 30522
SHARE_TOLERANCE = 0.01  # of the share of targets among 80,000 tokens: eight standard deviations


def compare_collating(
    make_collators: Callable[[PreTrainedTokenizerFast], dict[str, Callable]],
    is_correct: Callable[[list[dict[str, torch.Tensor]], list[list[dict[str, Any]]], PreTrainedTokenizerFast], bool],
    shape: tuple[int, int],
    target_ratio: float,
    repetitions: int,
    seed: int,
    folder: Path,
) -> bool:
    """Time the collators on examples that are in memory, print the times, and return whether both are correct.

    Args:
        make_collators: tokenizer -> the collators "ours" and "baseline".
        is_correct: whether the batches of a collator have the right targets, given the examples.
        shape: examples in a batch, and tokens in an example.
    """
    batch_size, block_size = shape
    tokenizer = numbered_tokenizer(VOCAB_SIZE, MASKED_SPECIAL_TOKENS)
    num_blocks = NUM_BATCHES * batch_size
    blocks = blocks_with_special_tokens(tokenizer, num_blocks, block_size, seed, folder / "collating.bin")
    batches = [blocks.__getitems__(range(start, start + batch_size)) for start in range(0, num_blocks, batch_size)]
    examples = {"ours": batches, "baseline": [[as_row(each, tokenizer) for each in batch] for batch in batches]}
    collators = make_collators(tokenizer)
    seconds = {name: [] for name in collators}
    are_correct = {}
    for repetition, name in interleaved(collators, 1 + repetitions):
        collated = []
        for batch in examples[name]:
            start = time.perf_counter()
            collated.append(collators[name](batch))
            seconds[name].append(time.perf_counter() - start)
        if repetition == 0:  # warm-up
            are_correct[name] = is_correct(collated, batches, tokenizer)
            seconds[name].clear()

    print(f"collating: medians of {len(seconds['ours'])} batches of {batch_size} examples of {block_size} tokens")
    for name in collators:
        median = statistics.median(seconds[name])
        bounds = f"{1000 * min(seconds[name]):.2f} to {1000 * max(seconds[name]):.2f}"
        print(f"  {name}: {1000 * median:.2f} ms per batch ({bounds}), {batch_size / median:,.0f} examples/s")
    print_ratio("collating", seconds, target_ratio)
    print(f"{verdict(all(are_correct.values()))} labels match the tokens, and the share of targets is as expected")
    return all(are_correct.values())


def as_row(example: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """The example as transformers' run_mlm.py prepares it, with `return_special_tokens_mask`."""
    input_ids = example["input_ids"].tolist()
    special_ids = set(tokenizer.all_special_ids)
    return {
        "input_ids": input_ids,
        "attention_mask": [1] * len(input_ids),
        "special_tokens_mask": [int(index in special_ids) for index in input_ids],
    }
