"""python -m benchmarks.whole_run [--repetitions 3] [--steps 50] [--precisions fp32 bf16]

Compares whole runs, each in a process of its own: run_clm.py, and a script that does as transformers' run_clm.py
(benchmarks/textbook_clm.py). Both tokenize a text, train a GPT-2 of 4 layers, 256 wide, with 50,257 tokens, without
dropout, for 50 steps of 8 x 256 tokens, and evaluate it on 300 blocks.

Prints the time of the run, the time to its first step, the speed of its evaluation, and its peak memory. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transformers import AutoModelForCausalLM, GPT2Config, set_seed

from benchmarks.measurement import interleaved, silence_libraries, verdict
from benchmarks.preprocessing import write_text
from benchmarks.textbook_clm import BLOCK_SIZE, EVAL_BLOCKS
from utils.tokens.tokenizer_training import train_tokenizer


TARGETS = {"fp32": 0.8, "bf16": 0.65}
# Runs a module and prints when the first step began, in seconds since the Epoch, and the peak memory in kB.
RUNNER = """
import runpy, sys, time
from pathlib import Path
from transformers import Trainer
training_step, begun = Trainer.training_step, []
def timed_step(*args, **kwargs):
    begun.append(time.time())
    return training_step(*args, **kwargs)
Trainer.training_step = timed_step
module, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module(module, run_name="__main__")
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print("measured", begun[0], peak)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each side, interleaved (default: 3)")
    parser.add_argument("--steps", type=int, default=50, help="steps of a run (default: 50)")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    flags = parser.parse_args()
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder))
        for precision in flags.precisions:
            runs = {"ours": [], "baseline": []}
            for repetition, side in interleaved(runs, flags.repetitions):
                runs[side].append(run(side, precision, Path(folder), f"{precision}-{repetition}", flags.steps))
            report(precision, runs)


def make_inputs(folder: Path) -> None:
    """Two texts, and a model with random weights and a tokenizer of 8,192 of its 50,257 tokens."""
    write_text(folder / "train.txt", 2.5)
    write_text(folder / "validation.txt", 0.6)
    lines = (folder / "train.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    train_tokenizer("bpe", [lines], 8192).save_pretrained(folder / "checkpoint")
    set_seed(0)
    sizes = {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 50257}
    no_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    AutoModelForCausalLM.from_config(GPT2Config(**sizes, **no_dropout)).save_pretrained(folder / "checkpoint")


def run(side: str, precision: str, folder: Path, name: str, steps: int) -> dict[str, float]:
    """A run in a process of its own: seconds, seconds to the first step, evaluation tokens per second, peak MB."""
    output = folder / f"{side}-{name}"
    texts = folder / "train.txt", folder / "validation.txt"
    if side == "ours":
        module = "run_clm"
        words = [
            "--model_name_or_path",
            folder / "checkpoint",
            "--train_file",
            texts[0],
            "--validation_file",
            texts[1],
        ]
        words += ["--output_dir", output, "--cache_dir", folder / f"cache-{name}", "--block_size", BLOCK_SIZE]
        words += ["--max_eval_samples", EVAL_BLOCKS, "--bf16", str(precision == "bf16").lower()]
    else:
        module = "benchmarks.textbook_clm"
        words = [folder / "checkpoint", *texts, output, "--use_cpu", "--per_device_eval_batch_size", 8]
        words += ["--bf16"] if precision == "bf16" else []
    words += ["--max_steps", steps, "--per_device_train_batch_size", 8, "--save_strategy", "no", "--report_to", "none"]
    words += ["--disable_tqdm", "true"]
    start = time.time()
    process = subprocess.run(
        [sys.executable, "-c", RUNNER, module, *map(str, words)],
        capture_output=True, text=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "true"},
    )  # fmt: skip
    seconds = time.time() - start
    if process.returncode:
        raise RuntimeError(process.stdout + process.stderr)
    first_step, peak = process.stdout.rsplit("measured", 1)[1].split()
    results = json.loads((output / "all_results.json").read_text())
    return {
        "seconds": seconds,
        "to the first step": float(first_step) - start,
        "evaluation tokens per second": EVAL_BLOCKS * (BLOCK_SIZE - 1) / results["eval_runtime"],
        "peak MB": int(peak) * 1024 / 1e6,
        "evaluation loss": results["eval_loss"],
    }


def report(precision: str, runs: dict[str, list[dict[str, float]]]) -> None:
    print(f"{precision}: medians of {len(runs['ours'])} runs (lowest to highest)")
    for figure in runs["ours"][0]:
        values = {side: [each[figure] for each in runs[side]] for side in runs}
        median = {side: statistics.median(values[side]) for side in runs}
        shown = [f"{side} {median[side]:,.2f} ({min(each):,.2f} to {max(each):,.2f})" for side, each in values.items()]
        print(f"  {figure}: {', '.join(shown)}, ratio {median['ours'] / median['baseline']:.2f}", flush=True)
    medians = {side: statistics.median(each["seconds"] for each in runs[side]) for side in runs}
    ratio, target = medians["ours"] / medians["baseline"], TARGETS[precision]
    print(
        f"{verdict(ratio <= target)} whole run in {precision}: {ratio:.2f} of the baseline's time (target: {target})"
    )


if __name__ == "__main__":
    main()
