"""python -m benchmarks.preprocessing [--documents lines] [--kind wordpiece] [--megabytes 20] [--tokenizer PATH]
python -m benchmarks.preprocessing --memory [--memory_megabytes 10]
python -m benchmarks.preprocessing --large

Compares turning text into blocks with `tokenize_documents` and PackedBlocks, as run_clm.py does, with two calls of
`Dataset.map`, as transformers' run_clm.py does: one that tokenizes and one that groups texts. Ours reads the file; the
baseline starts from a dataset that has been loaded.

The first command prints the time, the throughput and the bytes on disk per token of both. It exits with 1 if their
tokens differ. The second prints the peak memory for a text and for one ten times as long, the third the time and the
peak memory for 1 GB (Linux only).
"""

import argparse
import itertools
import json
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.measurement import in_fresh_process, interleaved, peak_memory, print_ratio, silence_libraries, verdict
from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.examples.packed import PackedBlocks
from utils.text.corpus import load_corpus
from utils.text.file_documents import FileDocuments
from utils.tokens.token_store import TokenStore
from utils.tokens.tokenization import tokenize_documents
from utils.tokens.tokenizer_training import train_tokenizer


VOCAB_SIZE = 8192
TARGET_RATIOS = {  # by the kind of the tokenizer and what a document is
    ("bpe", "files"): 15, ("bpe", "lines"): 8, ("wordpiece", "files"): 10, ("wordpiece", "lines"): 5,
    ("unigram", "files"): 4, ("unigram", "lines"): 3,
}  # fmt: skip
TARGET_GROWTH = 60  # MB, from a text to one ten times as long
LARGE_MEGABYTES, LARGE_SECONDS, LARGE_PEAK = 1000, 120, 600


def main() -> int:
    flags = parse_flags()
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        if flags.large:
            measure_large(flags, Path(folder))
            return 0
        if flags.memory:
            compare_memory(flags, Path(folder))
            return 0
        return 0 if compare_speed(flags, Path(folder)) else 1


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20, help="size of the text (default: 20)")
    parser.add_argument("--documents", choices=["lines", "files"], default="files", help="a document (default: files)")
    parser.add_argument("--kind", choices=["bpe", "wordpiece", "unigram"], default="bpe", help="of the tokenizer")
    parser.add_argument("--large", action="store_true", help=f"tokenize {LARGE_MEGABYTES:,} MB, ours alone")
    parser.add_argument("--text_file", help="text to use instead of Python's own, repeated if it is too short")
    parser.add_argument("--tokenizer", help=f"default: one of --kind with {VOCAB_SIZE:,} tokens, trained on the text")
    parser.add_argument("--block_size", type=int, default=1024, help="tokens in a block (default: 1024)")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each side, interleaved (default: 3)")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--memory_megabytes", type=float, default=10, help="the shorter of two texts (default: 10)")
    return parser.parse_args()


# The text and the tokenizer, the same for both sides


def python_text() -> Iterator[str]:
    """Text that comes with every Python: its language reference, then the sources of its standard library."""
    yield from topics.values()
    stdlib = Path(sysconfig.get_path("stdlib"))
    for file in sorted(stdlib.rglob("*.py")):
        if not {"site-packages", "dist-packages"} & set(file.parts):
            try:
                yield file.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # Python's own tests of encodings
                continue


def write_text(file: Path, megabytes: float, text_file: str | None = None) -> Path:
    """Write documents of `megabytes` in all, repeating the text if it is too short: lines of .txt, or rows of .jsonl.

    The text is Python's own, or that of `text_file`, which is divided at blank lines into the documents of a .jsonl.
    """
    are_lines = file.suffix == ".txt"
    texts = Path(text_file).read_text(encoding="utf-8").split("\n\n") if text_file else list(python_text())
    if are_lines:
        texts = [line for text in texts for line in text.split("\n")]
    size = 0
    with open(file, "w", encoding="utf-8") as output:
        for text in itertools.cycle(texts):
            size += len(text.encode()) + are_lines
            if size > megabytes * 1e6:
                return file
            output.write(f"{text}\n" if are_lines else f"{json.dumps({'text': text})}\n")


def input_file(folder: Path, megabytes: float, flags: argparse.Namespace) -> Path:
    """The text that the flags ask for."""
    file = folder / f"{megabytes:g}{'.txt' if flags.documents == 'lines' else '.jsonl'}"
    return write_text(file, megabytes, flags.text_file)


def load_documents(text_file: Path, cache_dir: Path) -> FileDocuments:
    """The documents of a file, as run_clm.py opens them."""
    data_args = DataArguments(train_file=[str(text_file)])
    training_args = LMTrainingArguments(output_dir=str(cache_dir / "outputs"), do_train=True, report_to=["none"])
    return load_corpus(data_args, training_args, str(cache_dir), None)["train"]


def load_dataset_of(text_file: Path, cache_dir: Path) -> Dataset:
    """The same documents, as transformers' run_clm.py loads them."""
    kind, options = ("text", {"keep_linebreaks": True}) if text_file.suffix == ".txt" else ("json", {})
    return load_dataset(kind, data_files={"train": str(text_file)}, cache_dir=str(cache_dir), **options)["train"]


def find_or_train_tokenizer(flags: argparse.Namespace, documents: FileDocuments, folder: Path) -> Path | str:
    """The given name, or the folder of a tokenizer trained on the first documents."""
    if flags.tokenizer is not None:
        return flags.tokenizer
    batches = [[row["text"] for row in rows] for rows in itertools.islice(documents.read(), 5)]
    train_tokenizer(flags.kind, batches, VOCAB_SIZE).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def load_tokenizer(name: Path | str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(name)
    if isinstance(name, Path):  # as for GPT-2, so that the baseline need not write token_type_ids as well
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def document_text(row: dict) -> str:
    return row["text"]


# The two sides


def preprocess_ours(text_file: Path, tokenizer: PreTrainedTokenizerBase, block_size: int, folder: Path) -> TokenStore:
    store = tokenize_documents(
        load_documents(text_file, folder),
        tokenizer,
        document_text,
        DataArguments(train_file=["-"]),
        cache_dir=str(folder),
        description="train",
    )
    PackedBlocks(store, block_size)
    return store


def preprocess_baseline(
    text_file: Path, tokenizer: PreTrainedTokenizerBase, block_size: int, folder: Path
) -> tuple[Dataset, Dataset]:
    """The tokenized documents and their blocks, as transformers' run_clm.py makes them."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = load_dataset_of(text_file, folder.parent / "datasets")  # loaded before

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


PREPROCESS = {"ours": preprocess_ours, "baseline": preprocess_baseline}


# Speed


def compare_speed(flags: argparse.Namespace, folder: Path) -> bool:
    """Preprocess both ways, print the times, and return whether the tokens agree."""
    text_file = input_file(folder, flags.megabytes, flags)
    documents = load_dataset_of(text_file, folder / "datasets")
    tokenizer = load_tokenizer(find_or_train_tokenizer(flags, load_documents(text_file, folder / "corpus"), folder))
    megabytes = sum(len(text.encode()) for batch in documents.iter(1000) for text in batch["text"]) / 1e6
    print(f"{megabytes:.1f} MB, {len(documents):,} documents, a tokenizer of {len(tokenizer):,} tokens")

    seconds = {name: [] for name in PREPROCESS}
    results = {}
    for repetition, name in interleaved(PREPROCESS, flags.repetitions):
        start = time.perf_counter()
        results[name] = PREPROCESS[name](text_file, tokenizer, flags.block_size, folder / f"{name}{repetition}")
        seconds[name].append(time.perf_counter() - start)
        print(f"  repetition {repetition + 1}, {name}: {seconds[name][-1]:.2f} s", flush=True)

    store = results["ours"]
    tokenized, blocks = results["baseline"]
    bytes_on_disk = {
        "ours": sum(file.stat().st_size for file in store.path.parent.glob("*/*")),
        "baseline": sum(Path(file["filename"]).stat().st_size for file in tokenized.cache_files + blocks.cache_files),
    }
    num_tokens = len(store.tokens)
    for name in PREPROCESS:
        median = statistics.median(seconds[name])
        print(
            f"{name}: median {median:.2f} s ({min(seconds[name]):.2f} to {max(seconds[name]):.2f}), "
            f"{megabytes / median:.2f} MB/s, {num_tokens / median:,.0f} tokens/s, "
            f"{bytes_on_disk[name] / num_tokens:.2f} bytes on disk per token"
        )
    num_dropped = num_tokens - len(blocks) * flags.block_size
    print(f"{num_tokens:,} tokens, of which the baseline drops {num_dropped:,} as remainders")
    print_ratio("preprocessing", seconds, TARGET_RATIOS[flags.kind, flags.documents])
    is_same = same_tokens(store, tokenized)
    print(f"{verdict(is_same)} the same tokens in every document")
    return is_same


def same_tokens(store: TokenStore, tokenized: Dataset) -> bool:
    column = tokenized.with_format("arrow")[:]["input_ids"]
    lengths = [len(ids) for chunk in column.chunks for ids in chunk]
    tokens = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    return np.array_equal(np.asarray(store.tokens), tokens) and np.array_equal(np.diff(store.offsets), lengths)


# Memory


def compare_memory(flags: argparse.Namespace, folder: Path) -> None:
    sizes = (flags.memory_megabytes, 10 * flags.memory_megabytes)
    text_files = [input_file(folder, size, flags) for size in sizes]
    tokenizer = find_or_train_tokenizer(flags, load_documents(text_files[0], folder / "corpus"), folder)
    growths = {}
    for name in PREPROCESS:
        peaks = []
        for text_file, size in zip(text_files, sizes, strict=True):
            cache_dir = folder / name / text_file.stem
            before, peak = in_fresh_process(preprocess_file, name, text_file, tokenizer, flags.block_size, cache_dir)
            print(f"{name}, {size:g} MB: peak {peak:,.0f} MB, of which {before:,.0f} MB before the text", flush=True)
            peaks.append(peak)
        growths[name] = peaks[1] - peaks[0]
        print(f"{name}: {growths[name]:,.0f} MB more for a text ten times as long")
    print(
        f"{verdict(growths['ours'] < TARGET_GROWTH)} memory: {growths['ours']:,.0f} MB more (target: below "
        f"{TARGET_GROWTH} MB)"
    )


def preprocess_file(
    name: str, text_file: Path, tokenizer_name: Path | str, block_size: int, cache_dir: Path
) -> tuple[float, float]:
    """Load and preprocess a text file. Returns the peak memory before and after that, in MB."""
    silence_libraries()
    tokenizer = load_tokenizer(tokenizer_name)
    before = peak_memory()
    PREPROCESS[name](text_file, tokenizer, block_size, cache_dir / "blocks")
    return before, peak_memory()


def measure_large(flags: argparse.Namespace, folder: Path) -> None:
    """The time and the peak memory of a fresh process that tokenizes a large text."""
    text_file = input_file(folder, LARGE_MEGABYTES, flags)
    tokenizer = find_or_train_tokenizer(flags, load_documents(text_file, folder / "corpus"), folder)
    start = time.perf_counter()
    before, peak = in_fresh_process(preprocess_file, "ours", text_file, tokenizer, flags.block_size, folder / "large")
    seconds = time.perf_counter() - start
    print(f"{verdict(seconds < LARGE_SECONDS)} {LARGE_MEGABYTES:,} MB in {seconds:.0f} s (target: {LARGE_SECONDS} s)")
    print(
        f"{verdict(peak < LARGE_PEAK)} peak {peak:,.0f} MB, {before:,.0f} MB before the text (target: {LARGE_PEAK} MB)"
    )


if __name__ == "__main__":
    sys.exit(main())
