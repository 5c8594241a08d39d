"""What a script prints at its end."""

import math

from utils.config.training_arguments import LMTrainingArguments
from utils.examples.base import Examples
from utils.progress import format_duration


# By the end of a result's name, in the order in which they are printed.
FORMATS = {
    "loss": "{:.4f}".format,
    "perplexity": "{:.3f}".format,
    "bits_per_byte": "{:.4f}".format,
    "accuracy": "{:.4f}".format,
    "best_step": "{:,}".format,
    "tokens_per_second": "{:,.0f}".format,
    "runtime": format_duration,
    "memory_mb": "{:,.0f} MB".format,
}
WITHOUT_EVAL = ("perplexity", "bits_per_byte", "accuracy")  # the training has no figure of this name


def print_summary(results: dict[str, float], output_dir: str) -> None:
    """Print the most important figures, and where the others are."""
    rows = []
    for ending, formatted in FORMATS.items():
        for key, value in results.items():
            if key.endswith(ending) and f"eval_{key}" not in results and isinstance(value, int | float):
                label = key.removeprefix("eval_") if ending in WITHOUT_EVAL else key.removesuffix("_mb")
                rows.append((label.replace("_", " "), formatted(value)))
    rows.append(("results", output_dir))
    width = max(len(label) for label, _ in rows)
    print()
    for label, value in rows:
        print(f"{label:>{width}}  {value}", flush=True)


def print_counts(datasets: dict[str, Examples], training_args: LMTrainingArguments) -> dict[str, int]:
    """For `--preprocess_only`: print the size of each split, and the steps of an epoch with these flags.

    Returns:
        For each split, `train_documents`, `train_tokens`, `train_bytes` and `train_blocks`; and `steps_per_epoch`.
    """
    counts = {}
    for split, examples in datasets.items():
        sizes = {
            "documents": sum(store.num_documents for store in examples.stores),
            "tokens": sum(len(store.tokens) for store in examples.stores),
            "bytes": sum(store.num_bytes for store in examples.stores),
            "blocks": len(examples),
        }
        counts |= {f"{split}_{name}": count for name, count in sizes.items()}
        printed = ", ".join(f"{count:,} {name}" for name, count in sizes.items())
        print(f"{split}: {printed} of {examples.block_size:,}")
    if "train" in datasets:
        batch_size = training_args.train_batch_size * training_args.world_size
        num_batches = math.ceil(len(datasets["train"]) / batch_size)
        counts["steps_per_epoch"] = math.ceil(num_batches / training_args.gradient_accumulation_steps)
        print(f"steps per epoch: {counts['steps_per_epoch']:,}")
    return counts
