"""python -m benchmarks.evaluation_memory [--eval_blocks 64] [--n_embd 256] [--vocab_size 50257]

Compares how far an evaluation of a GPT-2 raises the peak memory, with LMTrainer and with the plain Trainer, for
`--eval_blocks` and for four times as many. Each evaluation runs in a fresh process. Linux only.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.comparison import add_flags, make_parser
from benchmarks.measurement import in_fresh_process, peak_memory, silence_libraries, verdict
from benchmarks.train_causal import DEFAULTS, causal_comparison, check_causal_flags


FLAGS = ("n_layer", "n_embd", "vocab_size", "block_size", "batch_size", "eval_blocks", "seed")
TARGET_GROWTH = 32  # MB, from an evaluation to one of four times as many blocks; allows for the allocator's noise


def main() -> None:
    parser = make_parser(__doc__)
    add_flags(parser, {name: DEFAULTS[name] for name in FLAGS})
    flags = parser.parse_args(namespace=argparse.Namespace(**DEFAULTS))
    check_causal_flags(parser, flags)
    growths = {}
    for name in ("ours", "baseline"):
        for num_blocks in (flags.eval_blocks, 4 * flags.eval_blocks):
            growth = in_fresh_process(evaluation_memory, flags, name, num_blocks)
            growths[name, num_blocks] = growth
            print(f"{name}, {num_blocks} blocks: {growth:,.1f} MB more than before the evaluation", flush=True)
    growth = growths["ours", 4 * flags.eval_blocks] - growths["ours", flags.eval_blocks]
    print(
        f"{verdict(growth < TARGET_GROWTH)} memory: {growth:,.1f} MB more for four times the blocks "
        f"(target: below {TARGET_GROWTH} MB)"
    )


def evaluation_memory(flags: argparse.Namespace, name: str, num_blocks: int) -> float:
    """How far an evaluation of `num_blocks` blocks raises the peak memory, in MB."""
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        flags = argparse.Namespace(**(vars(flags) | {"eval_blocks": num_blocks}))
        trainer = causal_comparison(flags, Path(folder)).trainers[name]()
        before = peak_memory()
        trainer.evaluate()
        return peak_memory() - before


if __name__ == "__main__":
    main()
