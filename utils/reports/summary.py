"""What a run prints at its end."""

import math

from utils.config.training_arguments import LMTrainingArguments
from utils.examples.packed import PackedBlocks


def print_summary(results: dict[str, float], output_dir: str) -> None:
    """The figures that one looks for first, and where the rest is."""
    formats = {
        "perplexity": ".3f",
        "bits_per_byte": ".4f",
        "train_tokens_per_second": ",.0f",
        "eval_tokens_per_second": ",.0f",
    }
    formats |= {key: ".4f" for key in results if key.endswith("_accuracy") and key != "eval_accuracy"}
    print()
    for key, number_format in formats.items():
        if key in results:
            print(f"{key.replace('_', ' '):>23}  {results[key]:{number_format}}")
    print(f"{'results':>23}  {output_dir}", flush=True)


def print_counts(datasets_by_split: dict[str, PackedBlocks], training_args: LMTrainingArguments) -> None:
    """What `--preprocess_only` has to say: the size of each split, and the steps of an epoch with these flags."""
    for split, blocks in datasets_by_split.items():
        stores = getattr(blocks, "stores", None) or [blocks.store]
        num_tokens, num_bytes = sum(len(store.tokens) for store in stores), sum(store.num_bytes for store in stores)
        print(
            f"{split}: {sum(store.num_documents for store in stores):,} documents, "
            f"{num_tokens:,} tokens, {num_bytes:,} bytes, {len(blocks):,} blocks of {blocks.block_size:,}"
        )
    if "train" in datasets_by_split:
        batch_size = training_args.train_batch_size * training_args.world_size
        batches = math.ceil(len(datasets_by_split["train"]) / batch_size)
        print(f"steps per epoch: {math.ceil(batches / training_args.gradient_accumulation_steps):,}")
