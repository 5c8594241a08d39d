"""python -m benchmarks.train_adapter [--adapter_config seq_bn] [--models gpt2 bert-base roberta-base bert-small]

Compares training an adapter with LMTrainer, as the scripts do with --train_adapter, with the library's AdapterTrainer;
then our training of the adapter with our training of the whole model, in time and peak memory. Weights, tokens and
other settings are those of train_causal (gpt2) and train_masked. Needs transformers 4.57; memory: Linux only.

Exits with 1 if the losses of LMTrainer and AdapterTrainer differ.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import train_causal, train_masked
from benchmarks.comparison import Comparison, StepTimer, add_flags, check_flags, compare_training, make_parser
from benchmarks.measurement import in_fresh_process, peak_memory, silence_libraries
from benchmarks.train_causal import causal_comparison, check_causal_flags
from benchmarks.train_masked import check_masked_flags, masked_comparison
from utils.compat import NO_ADAPTERS_REASON


MODELS = ["gpt2", *train_masked.MODELS]
TARGET_RATIOS = {"gpt2": 1.0} | dict.fromkeys(train_masked.MODELS, 1.15)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--adapter_config", default="seq_bn", help="kind of adapter (default: seq_bn)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["gpt2"], help="default: gpt2")
    add_flags(parser, train_causal.DEFAULTS, are_optional=True)
    given = parser.parse_args()
    if NO_ADAPTERS_REASON:
        parser.error(NO_ADAPTERS_REASON)
    flags = {name: with_defaults(given, name) for name in given.models}
    for name, of_model in flags.items():
        check_flags(parser, of_model)
        (check_causal_flags if name == "gpt2" else check_masked_flags)(parser, of_model)
    silence_libraries()
    are_equal = [compare_adapter(flags[name], name) for name in flags]
    return 0 if all(are_equal) else 1


def with_defaults(given: argparse.Namespace, name: str) -> argparse.Namespace:
    """The flags that were given, and the defaults of the model's own benchmark for the others."""
    defaults = train_causal.DEFAULTS if name == "gpt2" else train_masked.DEFAULTS
    return argparse.Namespace(**(defaults | {flag: value for flag, value in vars(given).items() if value is not None}))


def adapter_comparison(flags: argparse.Namespace, folder: Path, name: str, adapter_config: str | None) -> Comparison:
    """Training of an adapter in the model `name`; without `adapter_config`, of the whole model."""
    if name == "gpt2":
        comparison = causal_comparison(flags, folder, adapter_config)
    else:
        comparison = masked_comparison(flags, folder, name, adapter_config)
    title = f"{comparison.title} with {adapter_config}"
    return dataclasses.replace(comparison, title=title, target_ratio=TARGET_RATIOS[name])


def compare_adapter(flags: argparse.Namespace, name: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        is_equal = compare_training(flags, adapter_comparison(flags, Path(folder), name, flags.adapter_config))
    costs = {}
    for trained, adapter_config in (("adapter", flags.adapter_config), ("whole model", None)):
        costs[trained] = in_fresh_process(training_cost, flags, name, adapter_config)
        seconds, megabytes = costs[trained]
        print(
            f"  ours, {trained}: {1000 * seconds:.1f} ms per step, {megabytes:,.0f} MB more than before the training"
        )
    ratios = [costs["whole model"][i] / costs["adapter"][i] for i in range(2)]
    print(f"     the adapter trains {ratios[0]:.2f}x as fast as the whole model, with 1/{ratios[1]:.2f} of the memory")
    return is_equal


def training_cost(flags: argparse.Namespace, name: str, adapter_config: str | None) -> tuple[float, float]:
    """The median time of one of our training steps in seconds, and how far training raises the peak memory in MB."""
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        # Kept until the end: training would reuse the memory of a freed initial model, which the peak would not show.
        comparison = adapter_comparison(flags, Path(folder), name, adapter_config)
        trainer = comparison.trainers["ours"]()
        timer = StepTimer()
        trainer.add_callback(timer)
        before = peak_memory()
        trainer.train()
        return statistics.median(timer.steps[flags.warm_up_steps :]), peak_memory() - before


if __name__ == "__main__":
    sys.exit(main())
