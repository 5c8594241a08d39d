"""How fast text becomes blocks: tokenizing and grouping, ours against two `Dataset.map` calls.

    python benchmarks/preprocessing.py [--megabytes 20] [--repetitions 3] [--text_file PATH] [--tokenizer NAME_OR_PATH]
    python benchmarks/preprocessing.py --memory [--memory_megabytes 10]

The first prints seconds, megabytes and tokens a second and bytes on disk a token of both ways, and exits with 1 if
they do not give the same tokens. The second prints the peak memory for a text and for one ten times as long.
"""

import argparse
import multiprocessing
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydoc_data.topics import topics

import datasets
import numpy as np
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.examples.packed import PackedBlocks
from utils.text.corpus import load_corpus
from utils.tokens.token_store import TokenStore, tokenize_documents
from utils.tokens.tokenizer_training import train_tokenizer


VOCAB_SIZE = 8192
LEAST_RATIO = 1.8
MOST_GROWTH = 200  # MB, from a text to one ten times as long


def main() -> int:
    flags = parse_flags()
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        if flags.memory:
            compare_memory(flags, Path(folder))
            return 0
        return compare_speed(flags, Path(folder))


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20, help="size of the text (default: 20)")
    parser.add_argument("--text_file", help="take this text, repeated if it is too short, instead of Python's own")
    parser.add_argument("--tokenizer", help=f"default: a byte-level BPE of {VOCAB_SIZE:,} tokens, trained on the text")
    parser.add_argument("--block_size", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=3, help="of each way, alternating (default: 3)")
    parser.add_argument("--memory", action="store_true", help="measure the peak memory instead of the time")
    parser.add_argument("--memory_megabytes", type=float, default=10, help="the smaller of two texts (default: 10)")
    return parser.parse_args()


# The text and the tokenizer, the same for both ways


def python_text() -> Iterator[str]:
    """Text that every Python carries: its language reference, then the sources of its standard library."""
    yield from topics.values()
    stdlib = Path(sysconfig.get_path("stdlib"))
    for file in sorted(stdlib.rglob("*.py")):
        if not {"site-packages", "dist-packages"} & set(file.parts):
            try:
                yield file.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # there are some, which test Python's reading of encodings
                continue


def write_text(file: Path, megabytes: float, text_file: str | None) -> None:
    """Write so many megabytes of whole lines, from the beginning again where the text is too short."""
    text = Path(text_file).read_text(encoding="utf-8") if text_file else "\n".join(python_text())
    lines = [f"{line}\n".encode() for line in text.split("\n")]
    size = 0
    with open(file, "wb") as output:
        while True:
            for line in lines:
                if size + len(line) > megabytes * 1e6:
                    return
                size += output.write(line)


def load_documents(text_file: Path, cache_dir: Path) -> Dataset:
    """The lines of a text file, as run_clm.py loads them."""
    data_args = DataArguments(train_file=[str(text_file)])
    training_args = LMTrainingArguments(output_dir=str(cache_dir / "outputs"), do_train=True, report_to=["none"])
    return load_corpus(data_args, training_args, str(cache_dir), None)["train"]


def make_tokenizer(name: str | None, documents: Dataset, folder: Path) -> Path | str:
    """The name of the tokenizer, or the folder where a new one is put."""
    if name is not None:
        return name
    tokenizer = train_tokenizer("bpe", (batch["text"] for batch in documents.iter(1000)), VOCAB_SIZE)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def load_tokenizer(name: Path | str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(name)
    if isinstance(name, Path):  # as GPT-2's, so that the textbook way need not write token_type_ids too
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def document_text(row: dict) -> str:
    return row["text"]


# The two ways


def preprocess_ours(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, folder: Path
) -> TokenStore:
    store = tokenize_documents(
        documents,
        tokenizer,
        document_text,
        DataArguments(train_file=["-"]),
        cache_dir=str(folder),
        description="train",
    )
    PackedBlocks(store, block_size)
    return store


def preprocess_textbook(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, folder: Path
) -> tuple[Dataset, Dataset]:
    """The tokenized documents and their blocks, as in the well-known examples of language modeling."""
    folder.mkdir(parents=True, exist_ok=True)

    def group_texts(examples: dict[str, list]) -> dict[str, list]:
        concatenated = {name: list(chain(*examples[name])) for name in examples}
        total_length = len(concatenated[next(iter(examples))])
        total_length = (total_length // block_size) * block_size
        result = {
            name: [values[start : start + block_size] for start in range(0, total_length, block_size)]
            for name, values in concatenated.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    tokenized = documents.map(
        lambda batch: tokenizer(batch["text"]),
        batched=True,
        remove_columns=documents.column_names,
        cache_file_name=str(folder / "tokenized.arrow"),
    )
    blocks = tokenized.map(group_texts, batched=True, cache_file_name=str(folder / "blocks.arrow"))
    return tokenized, blocks


WAYS = {"ours": preprocess_ours, "textbook": preprocess_textbook}


# Speed


def compare_speed(flags: argparse.Namespace, folder: Path) -> int:
    text_file = folder / "text.txt"
    write_text(text_file, flags.megabytes, flags.text_file)
    documents = load_documents(text_file, folder / "corpus")
    tokenizer = load_tokenizer(make_tokenizer(flags.tokenizer, documents, folder))
    megabytes = text_file.stat().st_size / 1e6
    print(f"{megabytes:.1f} MB, {len(documents):,} documents, a tokenizer of {len(tokenizer):,} tokens")

    seconds = {name: [] for name in WAYS}
    results = {}
    for repetition in range(flags.repetitions):
        # In turn first, so that neither is always the one after the other
        for name in list(WAYS)[:: 1 if repetition % 2 == 0 else -1]:
            start = time.perf_counter()
            results[name] = WAYS[name](documents, tokenizer, flags.block_size, folder / f"{name}{repetition}")
            seconds[name].append(time.perf_counter() - start)
            print(f"  repetition {repetition + 1}, {name}: {seconds[name][-1]:.2f} s", flush=True)

    store = results["ours"]
    tokenized, blocks = results["textbook"]
    disk_bytes = {
        "ours": sum(file.stat().st_size for file in store.path.iterdir()),
        "textbook": sum(Path(file["filename"]).stat().st_size for file in tokenized.cache_files + blocks.cache_files),
    }
    num_tokens = len(store.tokens)
    for name in WAYS:
        median = statistics.median(seconds[name])
        print(
            f"{name}: median {median:.2f} s ({min(seconds[name]):.2f} to {max(seconds[name]):.2f}), "
            f"{megabytes / median:.2f} MB/s, {num_tokens / median:,.0f} tokens/s, "
            f"{disk_bytes[name] / num_tokens:.2f} bytes on disk a token"
        )
    dropped = num_tokens - len(blocks) * flags.block_size
    print(f"{num_tokens:,} tokens; in no block of the textbook way, which drops remainders: {dropped:,}")
    ratio = statistics.median(seconds["textbook"]) / statistics.median(seconds["ours"])
    print(f"{verdict(ratio >= LEAST_RATIO)} preprocessing: {ratio:.2f}x the textbook way (target: {LEAST_RATIO}x)")
    is_same = same_tokens(store, tokenized)
    print(f"{verdict(is_same)} the same tokens in every document")
    return 0 if is_same else 1


def same_tokens(store: TokenStore, tokenized: Dataset) -> bool:
    column = tokenized.with_format("arrow")[:]["input_ids"]
    lengths = [len(ids) for chunk in column.chunks for ids in chunk]
    tokens = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    return np.array_equal(store.tokens, tokens) and np.array_equal(np.diff(store.offsets), lengths)


# Memory


def compare_memory(flags: argparse.Namespace, folder: Path) -> None:
    sizes = (flags.memory_megabytes, 10 * flags.memory_megabytes)
    text_files = [folder / f"{size:g}.txt" for size in sizes]
    for text_file, size in zip(text_files, sizes, strict=True):
        write_text(text_file, size, flags.text_file)
    tokenizer = make_tokenizer(flags.tokenizer, load_documents(text_files[0], folder / "corpus"), folder)
    growths = {}
    for name in WAYS:
        peaks = []
        for text_file, size in zip(text_files, sizes, strict=True):
            cache_dir = folder / name / text_file.stem
            before, peak = in_fresh_process(preprocess_file, name, text_file, tokenizer, flags.block_size, cache_dir)
            print(f"{name}, {size:g} MB: peak {peak:,.0f} MB, of which {before:,.0f} MB before the text", flush=True)
            peaks.append(peak)
        growths[name] = peaks[1] - peaks[0]
        print(f"{name}: {growths[name]:,.0f} MB more for a text ten times as long")
    print(
        f"{verdict(growths['ours'] < MOST_GROWTH)} memory: {growths['ours']:,.0f} MB (target: below {MOST_GROWTH} MB)"
    )


def preprocess_file(
    name: str, text_file: Path, tokenizer_name: Path | str, block_size: int, cache_dir: Path
) -> tuple[float, float]:
    """Load and preprocess a text file; the peak memory before that and at the end, in MB."""
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(tokenizer_name)
    before = peak_memory()
    if name == "ours":
        documents = load_documents(text_file, cache_dir)
    else:
        documents = load_dataset(
            "text", data_files={"train": str(text_file)}, keep_linebreaks=True, cache_dir=str(cache_dir)
        )["train"]
    WAYS[name](documents, tokenizer, block_size, cache_dir / "blocks")
    return before, peak_memory()


def in_fresh_process(function: Callable, *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *args).result()


def peak_memory() -> float:
    """Most memory that this process has had resident, in MB, pages of mapped files included."""
    # Not ru_maxrss, which a new process takes over from the one that started it
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status does not say the peak memory")


def verdict(is_met: bool) -> str:
    return "PASS" if is_met else "FAIL"


if __name__ == "__main__":
    sys.exit(main())
