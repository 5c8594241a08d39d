"""Streamed text: how fast it is prepared, trained on and resumed, and how much memory it takes.

    python benchmarks/streaming.py [--megabytes 60] [--parts prepare train resume memory]

- prepare: tokens a second that come out as batches, once the first have, against the textbook way,
  `IterableDataset.map` with a tokenizer and a function that groups texts, fed to torch's DataLoader.
- train: tokens a second of run_clm.py, streamed against cached, on a small GPT-2, once warm.
- resume: seconds until the first batch after going on from step 50 and from step 5,000.
- memory: the peak of a process that prepares 10 MB and of one that prepares 100 MB.

Runs of the two sides take turns. The text is Python's language reference, again and again, as .jsonl.
"""

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain, islice
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydoc_data.topics import topics

import datasets
from torch.utils.data import DataLoader
from transformers import default_data_collator

import run_clm
from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.examples.causal_collator import CausalLMCollator
from utils.examples.packed import PackedBlocks
from utils.examples.stream_loader import StreamLoader
from utils.examples.streaming import BlockStream, make_blocks
from utils.text.corpus import load_corpus
from utils.tokens.token_store import tokenize_documents
from utils.tokens.tokenizer_training import train_tokenizer


BLOCK_SIZE, BATCH_SIZE = 256, 8
REPETITIONS = 5
SIZES = "n_layer=2,n_embd=128,n_head=4,n_positions=256"


def document_text(row: dict) -> str:
    return row["text"]


def write_text(folder: Path, megabytes: int, num_files: int = 4) -> Path:
    """Python's reference, again and again, a number before each topic so that no two documents are equal."""
    folder.mkdir()
    repetitions = round(megabytes * 1e6 / num_files / sum(map(len, topics.values())))
    for i in range(num_files):
        with open(folder / f"{i}.jsonl", "w") as file:
            for repetition in range(repetitions):
                for topic in topics.values():
                    file.write(json.dumps({"text": f"{i}.{repetition}. {topic}"}) + "\n")
    return folder


def open_stream(path: Path, tokenizer, folder: Path, shuffle_buffer_size: int = 1000) -> BlockStream:
    data_args = DataArguments(train_file=[str(path)], streaming=True, shuffle_buffer_size=shuffle_buffer_size)
    training_args = LMTrainingArguments(output_dir=str(folder / "unused"), do_train=True, max_steps=1, bf16=False)
    documents = load_corpus(data_args, training_args, str(folder / "cache"), None)["train"]
    tokens = tokenize_documents(
        documents, tokenizer, document_text, data_args, cache_dir=str(folder / "cache"), description="train"
    )
    return make_blocks(PackedBlocks, tokens, BLOCK_SIZE)


def our_batches(path: Path, tokenizer, folder: Path):
    stream = open_stream(path, tokenizer, folder)
    return iter(StreamLoader(stream, BATCH_SIZE, CausalLMCollator(tokenizer), num_batches=10**9))


def textbook_batches(path: Path, tokenizer, folder: Path):
    """As transformers' run_clm.py does with --streaming, remainders of each 1,000 documents dropped."""

    def group_texts(examples: dict) -> dict:
        joined = {name: list(chain(*examples[name])) for name in examples}
        length = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
        result = {
            name: [values[i : i + BLOCK_SIZE] for i in range(0, length, BLOCK_SIZE)] for name, values in joined.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    rows = datasets.load_dataset("json", data_files=str(path / "*.jsonl"), cache_dir=folder / "cache", streaming=True)
    rows = rows["train"].shuffle(seed=0, buffer_size=1000)
    tokenized = rows.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
    return iter(DataLoader(tokenized.map(group_texts, batched=True), BATCH_SIZE, collate_fn=default_data_collator))


def prepare(tokenizer, path: Path, folder: Path, num_batches: int) -> None:
    ratios, speeds = [], {our_batches: [], textbook_batches: []}
    for _ in range(REPETITIONS):
        for side in speeds:
            batches = side(path, tokenizer, folder)
            next(batches)
            start = time.perf_counter()
            num_tokens = sum(batch["input_ids"].numel() for batch in islice(batches, num_batches))
            speeds[side].append(num_tokens / (time.perf_counter() - start))
            del batches
        ratios.append(speeds[our_batches][-1] / speeds[textbook_batches][-1])
    ours, textbook = (statistics.median(values) for values in speeds.values())
    print(
        f"prepare: {ours:,.0f} tokens/s, textbook {textbook:,.0f}, ratio {statistics.median(ratios):.2f}", flush=True
    )


def train(tokenizer, path: Path, folder: Path, num_steps: int) -> None:
    """The speed of the second half of the steps, so that filling the buffer and tokenizing the cache do not count."""
    speeds = {"streamed": [], "cached": []}
    tokenizer.save_pretrained(folder / "tokenizer")
    for repetition in range(REPETITIONS):
        sides = {"streamed": ["--streaming", "--shuffle_buffer_size", "1000"], "cached": []}
        for side in sorted(sides, reverse=repetition % 2):  # each in turn the first
            out = folder / f"{side}-{repetition}"
            run_clm.main(
                ["--model_type", "gpt2", "--config_overrides", SIZES, "--tokenizer_name", str(folder / "tokenizer"),
                 "--train_file", str(path), "--do_train", "--block_size", str(BLOCK_SIZE), "--save_strategy", "no",
                 "--per_device_train_batch_size", str(BATCH_SIZE), "--max_steps", str(num_steps),
                 "--logging_steps", str(num_steps // 2), "--disable_tqdm", "true", "--report_to", "none",
                 "--output_dir", str(out), "--cache_dir", str(folder / "cache"), *sides[side]]
            )  # fmt: skip
            log = json.loads((out / "trainer_state.json").read_text())["log_history"]
            speeds[side].append([entry["tokens_per_second"] for entry in log if "loss" in entry][-1])
    ratio = statistics.median(s / c for s, c in zip(*speeds.values(), strict=True))
    streamed, cached = (statistics.median(values) for values in speeds.values())
    print(f"train: streamed {streamed:,.0f} tokens/s, cached {cached:,.0f}, ratio {ratio:.2f}", flush=True)


def resume(tokenizer, path: Path, folder: Path) -> None:
    seconds = {}
    for step in (50, 5000):
        stream = open_stream(path, tokenizer, folder)
        batches = iter(StreamLoader(stream, BATCH_SIZE, CausalLMCollator(tokenizer), num_batches=10**9))
        for _ in range(step):
            next(batches)
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        stream.save_state(checkpoint)
        batches.close()
    for _ in range(REPETITIONS):
        for step in (50, 5000):
            start = time.perf_counter()
            stream = open_stream(path, tokenizer, folder)
            stream.load_state(folder / f"checkpoint-{step}")
            batches = iter(StreamLoader(stream, BATCH_SIZE, CausalLMCollator(tokenizer), num_batches=10**9))
            next(batches)
            seconds.setdefault(step, []).append(time.perf_counter() - start)
            batches.close()
    for step, values in seconds.items():
        size = sum(file.stat().st_size for file in (folder / f"checkpoint-{step}").iterdir())
        print(f"resume at step {step:,}: {statistics.median(values):.2f} s, a state of {size:,} bytes", flush=True)


def memory(tokenizer, folder: Path) -> None:
    """Each in a process of its own."""
    tokenizer.save_pretrained(folder / "tokenizer")
    for megabytes in (10, 100):
        path = write_text(folder / f"text-{megabytes}", megabytes)
        result = subprocess.run(
            [sys.executable, __file__, "--peak_of", str(path), "--megabytes", str(megabytes)],
            capture_output=True, text=True, check=True, cwd=folder,
        )  # fmt: skip
        print(f"memory, {megabytes} MB of text: {result.stdout.strip()}", flush=True)


def print_peak(path: Path) -> None:
    """Of an epoch, above what the process took before it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent / "tokenizer")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = open_stream(path, tokenizer, path.parent, shuffle_buffer_size=500)
    loader = StreamLoader(stream, BATCH_SIZE, CausalLMCollator(tokenizer), num_batches=10**9)
    for _ in loader:
        if stream.epoch > 0:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{peak / 1024:,.0f} MiB, of which {(peak - before) / 1024:,.0f} for the stream")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=60, help="size of the text")
    parser.add_argument("--parts", nargs="+", default=["prepare", "train", "resume", "memory"])
    parser.add_argument("--batches", type=int, default=1500, help="to prepare in each measurement")
    parser.add_argument("--steps", type=int, default=80, help="of each training")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    logging.disable()
    if flags.peak_of:
        print_peak(Path(flags.peak_of))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer("bpe", [list(topics.values())], 8192)
        path = write_text(folder / "text", flags.megabytes)
        print(f"{os.cpu_count()} cores, {flags.megabytes} MB in {len(topics):,} topics again and again", flush=True)
        if "prepare" in flags.parts:
            prepare(tokenizer, path, folder, flags.batches)
        if "train" in flags.parts:
            train(tokenizer, path, folder, flags.steps)
        if "resume" in flags.parts:
            resume(tokenizer, path, folder)
        if "memory" in flags.parts:
            memory(tokenizer, folder)


if __name__ == "__main__":
    main()
