"""python -m benchmarks.streaming [--megabytes 60] [--parts prepare train resume memory]

Compares streaming text, as --streaming does, with other ways to read it, in four parts:

- prepare: tokens per second that come out as batches, once the first one has, with the plain libraries:
  `IterableDataset.map` with a tokenizer and a function that groups texts, read by torch's DataLoader.
- train: tokens per second of run_clm.py with a small GPT-2, streamed, with the same command without --streaming.
- resume: time until the first batch of a stream resumed at step 5,000, with one resumed at step 50.
- memory: peak memory of a process that streams 100 MB, with one that streams 10 MB (Linux only).

The text is Python's language reference, repeated, as .jsonl files. Runs of the two sides are interleaved.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from pydoc_data.topics import topics

import datasets
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase, default_data_collator

import run_clm
from benchmarks.measurement import in_fresh_process, interleaved, peak_memory, silence_libraries
from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.examples.causal_collator import CausalLMCollator
from utils.examples.packed import PackedBlocks
from utils.examples.stream_loader import StreamLoader
from utils.examples.streaming import BlockStream, make_blocks
from utils.text.corpus import load_corpus
from utils.tokens.tokenization import tokenize_documents
from utils.tokens.tokenizer_training import train_tokenizer


PARTS = ["prepare", "train", "resume", "memory"]
BLOCK_SIZE, BATCH_SIZE = 256, 8
REPETITIONS = 5
MODEL_SIZE = "n_layer=2,n_embd=128,n_head=4,n_positions=256"
RESUMED_STEPS = (50, 5000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=60, help="size of the text (default: 60)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--batches", type=int, default=1500, help="batches in each measurement of prepare")
    parser.add_argument("--steps", type=int, default=80, help="steps in each run of train (default: 80)")
    flags = parser.parse_args()
    logging.disable()
    silence_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer("bpe", [list(topics.values())], 8192)
        tokenizer.save_pretrained(folder / "tokenizer")
        path = write_text(folder / "text", flags.megabytes)
        print(f"{os.cpu_count()} cores, {flags.megabytes} MB: {len(topics):,} topics, repeated", flush=True)
        if "prepare" in flags.parts:
            prepare(tokenizer, path, folder, flags.batches)
        if "train" in flags.parts:
            train(path, folder, flags.steps)
        if "resume" in flags.parts:
            resume(tokenizer, path, folder)
        if "memory" in flags.parts:
            memory(folder)


def write_text(folder: Path, megabytes: int, num_files: int = 4) -> Path:
    """Write Python's language reference, repeated, with a number before each topic so that no two documents agree."""
    folder.mkdir()
    repetitions = round(megabytes * 1e6 / num_files / sum(map(len, topics.values())))
    for i in range(num_files):
        with open(folder / f"{i}.jsonl", "w") as file:
            for repetition in range(repetitions):
                for topic in topics.values():
                    file.write(json.dumps({"text": f"{i}.{repetition}. {topic}"}) + "\n")
    return folder


def document_text(row: dict) -> str:
    return row["text"]


def open_stream(
    path: Path, tokenizer: PreTrainedTokenizerBase, folder: Path, shuffle_buffer_size: int = 1000
) -> BlockStream:
    data_args = DataArguments(train_file=[str(path)], streaming=True, shuffle_buffer_size=shuffle_buffer_size)
    training_args = LMTrainingArguments(output_dir=str(folder / "unused"), do_train=True, max_steps=1, bf16=False)
    documents = load_corpus(data_args, training_args, str(folder / "cache"), None)["train"]
    tokens = tokenize_documents(
        documents, tokenizer, document_text, data_args, cache_dir=str(folder / "cache"), description="train"
    )
    return make_blocks(PackedBlocks, tokens, BLOCK_SIZE)


def open_loader(stream: BlockStream, tokenizer: PreTrainedTokenizerBase) -> StreamLoader:
    return StreamLoader(stream, BATCH_SIZE, CausalLMCollator(tokenizer), num_batches=10**9)


def our_batches(path: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Iterator[dict]:
    return iter(open_loader(open_stream(path, tokenizer, folder), tokenizer))


def baseline_batches(path: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Iterator[dict]:
    """As transformers' run_clm.py with --streaming, which drops the remainder of every 1,000 documents."""

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


def prepare(tokenizer: PreTrainedTokenizerBase, path: Path, folder: Path, num_batches: int) -> None:
    open_batches = {"ours": our_batches, "baseline": baseline_batches}
    rates = {name: [] for name in open_batches}  # tokens/s
    for _, name in interleaved(open_batches, REPETITIONS):
        batches = open_batches[name](path, tokenizer, folder)
        next(batches)
        start = time.perf_counter()
        num_tokens = sum(batch["input_ids"].numel() for batch in islice(batches, num_batches))
        rates[name].append(num_tokens / (time.perf_counter() - start))
        del batches
    print(f"prepare: {summary(rates)}", flush=True)


def train(path: Path, folder: Path, num_steps: int) -> None:
    """Measure the second half of the steps, without filling the buffer and without writing the cache."""
    flags = {"streamed": ["--streaming", "--shuffle_buffer_size", "1000"], "cached": []}
    rates = {name: [] for name in flags}  # tokens/s
    for repetition, name in interleaved(flags, REPETITIONS):
        output_dir = folder / f"{name}-{repetition}"
        args = [
            "--model_type", "gpt2", "--config_overrides", MODEL_SIZE, "--tokenizer_name", str(folder / "tokenizer"),
            "--train_file", str(path), "--do_train", "--block_size", str(BLOCK_SIZE), "--save_strategy", "no",
            "--per_device_train_batch_size", str(BATCH_SIZE), "--max_steps", str(num_steps),
            "--logging_steps", str(num_steps // 2), "--disable_tqdm", "true", "--report_to", "none",
            "--output_dir", str(output_dir), "--cache_dir", str(folder / "cache"), *flags[name],
        ]  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):  # without the summary of each run
            run_clm.main(args)
        log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
        rates[name].append([entry["tokens_per_second"] for entry in log if "loss" in entry][-1])
    print(f"train: {summary(rates)}", flush=True)


def summary(rates: dict[str, list[float]]) -> str:
    """The medians of two sides, and the median ratio of the first to the second over the repetitions."""
    medians = ", ".join(f"{name} {statistics.median(values):,.0f} tokens/s" for name, values in rates.items())
    ratios = [first / second for first, second in zip(*rates.values(), strict=True)]
    return f"{medians}, ratio {statistics.median(ratios):.2f}"


def resume(tokenizer: PreTrainedTokenizerBase, path: Path, folder: Path) -> None:
    checkpoints = {str(step): folder / f"checkpoint-{step}" for step in RESUMED_STEPS}
    for step in RESUMED_STEPS:
        stream = open_stream(path, tokenizer, folder)
        batches = iter(open_loader(stream, tokenizer))
        for _ in range(step):
            next(batches)
        checkpoints[str(step)].mkdir()
        stream.save_state(checkpoints[str(step)])
        batches.close()
    seconds = {step: [] for step in checkpoints}
    for _, step in interleaved(checkpoints, REPETITIONS):
        start = time.perf_counter()
        stream = open_stream(path, tokenizer, folder)
        stream.load_state(checkpoints[step])
        batches = iter(open_loader(stream, tokenizer))
        next(batches)
        seconds[step].append(time.perf_counter() - start)
        batches.close()
    for step, values in seconds.items():
        num_bytes = sum(file.stat().st_size for file in checkpoints[step].iterdir())
        print(
            f"resume at step {int(step):,}: {statistics.median(values):.2f} s, {num_bytes:,} bytes of state",
            flush=True,
        )


def memory(folder: Path) -> None:
    for megabytes in (10, 100):
        path = write_text(folder / f"text-{megabytes}", megabytes)
        before, peak = in_fresh_process(streaming_memory, path, folder)
        print(f"memory, {megabytes} MB: peak {peak:,.0f} MB, of which {before:,.0f} MB before the stream", flush=True)


def streaming_memory(path: Path, folder: Path) -> tuple[float, float]:
    """Read an epoch in batches. Returns the peak memory before and after that, in MB."""
    logging.disable()
    silence_libraries()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    before = peak_memory()
    stream = open_stream(path, tokenizer, folder, shuffle_buffer_size=500)
    for _ in open_loader(stream, tokenizer):
        if stream.epoch > 0:
            break
    return before, peak_memory()


if __name__ == "__main__":
    main()
