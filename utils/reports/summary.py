"""What a script prints at its end."""

import math

from utils.config.training_arguments import LMTrainingArguments
from utils.examples.base import Examples


def print_summary(results: dict[str, float], output_dir: str) -> None:
    """Print the most important figures, and where the others are."""
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


def print_counts(datasets: dict[str, Examples], training_args: LMTrainingArguments) -> None:
    """For `--preprocess_only`: print the size of each split, and the steps of an epoch with these flags."""
    for split, examples in datasets.items():
        num_documents = sum(store.num_documents for store in examples.stores)
        num_tokens = sum(len(store.tokens) for store in examples.stores)
        num_bytes = sum(store.num_bytes for store in examples.stores)
        print(
            f"{split}: {num_documents:,} documents, {num_tokens:,} tokens, {num_bytes:,} bytes, "
            f"{len(examples):,} blocks of {examples.block_size:,}"
        )
    if "train" in datasets:
        batch_size = training_args.train_batch_size * training_args.world_size
        num_batches = math.ceil(len(datasets["train"]) / batch_size)
        print(f"steps per epoch: {math.ceil(num_batches / training_args.gradient_accumulation_steps):,}")
