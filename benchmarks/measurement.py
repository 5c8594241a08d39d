"""How all benchmarks measure: interleaved runs, ratios of medians, peak memory of a fresh process."""

import multiprocessing
import statistics
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.utils import logging as transformers_logging


def silence_libraries() -> None:
    """Only results are printed."""
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()


def interleaved(names: Iterable[str], repetitions: int) -> Iterator[tuple[int, str]]:
    """Pairs of a repetition and a name. Every other repetition reverses the names, so that neither always runs first.

    A machine that gets slower or faster during the benchmark then affects both sides alike.
    """
    names = list(names)
    for repetition in range(repetitions):
        for name in names if repetition % 2 == 0 else reversed(names):
            yield repetition, name


def median_ratio(seconds: dict[str, list[float]]) -> float:
    """How many times as fast `ours` is as `baseline`, by their medians."""
    return statistics.median(seconds["baseline"]) / statistics.median(seconds["ours"])


def print_ratio(title: str, seconds: dict[str, list[float]], target: float) -> None:
    ratio = median_ratio(seconds)
    print(f"{verdict(ratio >= target)} {title}: {ratio:.2f}x the speed of the baseline (target: {target}x)")


def verdict(is_met: bool) -> str:
    return "PASS" if is_met else "FAIL"


def synchronize() -> None:
    """Wait until an accelerator has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def in_fresh_process(function: Callable, *args: Any) -> Any:
    """The result of `function(*args)`, called in a new process. The function must be a module's, not nested."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *args).result()


def peak_memory() -> float:
    """Peak resident memory of this process so far, in MB, including pages of memory-mapped files. Linux only."""
    # Not ru_maxrss: a new process inherits it from its parent.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status does not give the peak memory")
