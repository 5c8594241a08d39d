"""python -m benchmarks.sentence_pairs [--text_file PATH] [--lengths 128 512] [--pairs 20000]

Compares nothing: measures how many pairs of sentences SentencePairs makes per second of CPU time, alone and with
PretrainingCollator, which masks and pads them. BERT's own program writes its pairs to files, once for all epochs.

The text is Python's language reference, one document per topic, or a .jsonl file with a column `text`.
"""

import argparse
import logging
import statistics
import tempfile
import time
from pydoc_data.topics import topics

import numpy as np
from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from benchmarks.measurement import silence_libraries
from utils.config.data_arguments import DataArguments
from utils.examples.pretraining_collator import PretrainingCollator
from utils.examples.sentence_pairs import SentencePairs
from utils.text.segmentation import Segmenter
from utils.tokens.token_store import TokenStore
from utils.tokens.tokenization import tokenize_documents
from utils.tokens.tokenizer_training import train_tokenizer


BATCH_SIZE = 32
REPETITIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_file", help="a .jsonl file with a column `text`, instead of Python's reference")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="tokens in a pair")
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs in each measurement (default: 20000)")
    flags = parser.parse_args()
    logging.disable()
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        if flags.text_file:
            documents = load_dataset("json", data_files=flags.text_file, cache_dir=folder)["train"]
        else:
            documents = Dataset.from_dict({"text": list(topics.values())})
        tokenizer = train_tokenizer("wordpiece", [documents[:2000]["text"]], 8192)
        store = tokenize(documents, tokenizer, folder)
        for length in flags.lengths:
            measure(SentencePairs(store, length, tokenizer, task="nsp", seed=0), tokenizer, flags.pairs)


def tokenize(documents: Dataset, tokenizer: PreTrainedTokenizerBase, folder: str) -> TokenStore:
    """Cut documents into sentences and tokenize them in one thread, and print how long that took."""
    start = time.perf_counter()
    store = tokenize_documents(
        documents,
        tokenizer,
        lambda row: row["text"],
        DataArguments(train_file=["-"], preprocessing_num_workers=1),
        cache_dir=folder,
        description="text",
        add_special_tokens=False,
        segmenter=Segmenter("sentence"),
    )
    seconds = time.perf_counter() - start
    num_sentences = len(store.segment_offsets) - 1
    print(f"{len(store.tokens):,} tokens in {num_sentences:,} sentences, tokenized in {seconds:.1f} s")
    return store


def measure(pairs: SentencePairs, tokenizer: PreTrainedTokenizerBase, num_pairs: int) -> None:
    """Print the median of pairs per second of CPU time, without and with collating them."""
    collator = PretrainingCollator(tokenizer, seed=0)
    indices = np.random.default_rng(0).integers(0, len(pairs), num_pairs)
    batches = [indices[start : start + BATCH_SIZE].tolist() for start in range(0, num_pairs, BATCH_SIZE)]
    rates = {"pairs": [], "with batches": []}
    for _ in range(REPETITIONS):
        for name, collate in (("pairs", len), ("with batches", collator)):
            start = time.process_time()  # CPU time: other work on the core does not count
            for batch in batches:
                collate(pairs.__getitems__(batch))
            rates[name].append(num_pairs / (time.process_time() - start))
    shown = ", ".join(
        f"{name} {statistics.median(values):,.0f}/s ({min(values):,.0f} to {max(values):,.0f})"
        for name, values in rates.items()
    )
    print(f"length {pairs.block_size}: {shown}")


if __name__ == "__main__":
    main()
