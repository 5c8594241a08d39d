"""Streams: the blocks of cached text, every document once an epoch, for any process, resumed anywhere."""

import gc
import itertools
import threading
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import make_lines
from sharded_text import make_documents, write_shards

from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.examples import stream_loader, streaming
from utils.examples.document_blocks import DocumentBlocks
from utils.examples.packed import PackedBlocks, PackedBlocksWithSpecialTokens
from utils.examples.sentence_pairs import SentencePairs
from utils.examples.stream_loader import StreamLoader
from utils.examples.streaming import make_blocks
from utils.text import file_formats, text_files
from utils.text.corpus import load_corpus
from utils.text.segmentation import Segmenter
from utils.tokens import token_stream
from utils.tokens.tokenization import tokenize_documents


PREFIX_AND_SUFFIX = ([0], [2])


def document_text(row: dict) -> str | None:
    return row["text"]


@pytest.fixture
def open_blocks(tmp_path, masked_tokenizer, monkeypatch):
    """`open_blocks(folder, blocks_class, streaming=True, ...)`: the blocks of a corpus, streamed or cached."""
    monkeypatch.setattr(streaming, "WINDOW_TOKENS", 500)
    monkeypatch.setattr(stream_loader, "WINDOW_TOKENS", 500)
    monkeypatch.setattr(token_stream, "CHARACTERS_PER_TASK", 1000)

    def call(
        folder: Path,
        blocks_class=PackedBlocks,
        streaming: bool = True,
        shuffle_buffer_size: int = 0,
        part: tuple[int, int] = (0, 1),
        seed: int = 42,
        document_by: str = "line",
    ):
        options = {"shuffle_buffer_size": shuffle_buffer_size} if streaming else {}
        data_args = DataArguments(
            train_file=[str(folder)], streaming=streaming, document_by=document_by, **options
        )  # fmt: skip
        training_args = LMTrainingArguments(
            output_dir=str(tmp_path / "out"), do_train=True, max_steps=5, seed=seed, use_cpu=True, bf16=False
        )
        documents = load_corpus(data_args, training_args, str(tmp_path / "cache"), None)["train"]
        if streaming:
            object.__setattr__(documents, "process_index", part[0])
            object.__setattr__(documents, "num_processes", part[1])
        tokens = tokenize_documents(
            documents,
            masked_tokenizer,
            document_text,
            data_args,
            cache_dir=str(tmp_path / "cache"),
            description="train",
            add_special_tokens=False,
            with_word_starts=blocks_class is not PackedBlocks,
            segmenter=Segmenter("line") if blocks_class is SentencePairs else None,
        )
        if blocks_class is SentencePairs:
            return make_blocks(SentencePairs, tokens, 32, masked_tokenizer, task="nsp", seed=seed)
        return make_blocks(blocks_class, tokens, 32, *([] if blocks_class is PackedBlocks else [PREFIX_AND_SUFFIX]))

    return call


def plain(example: dict) -> dict:
    return {name: np.asarray(value).tolist() for name, value in example.items()}


def one_epoch(stream) -> list[dict]:
    """The examples of the first epoch of this process."""
    blocks = iter(stream)
    examples = []
    while True:
        example = next(blocks)
        if blocks.state()["epoch"] > 0:
            return examples
        examples.append(plain(example))


# The same as from the cache


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet", ".txt"])
@pytest.mark.parametrize("blocks_class", [PackedBlocks, PackedBlocksWithSpecialTokens, DocumentBlocks])
def test_blocks_are_those_of_the_cache(suffix, blocks_class, tmp_path, open_blocks, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE_SIZE", 700)
    folder = write_shards(tmp_path / "text", make_documents(150), 3, suffix)
    cached = open_blocks(folder, blocks_class, streaming=False)
    expected = [plain(cached[i]) for i in range(len(cached))]
    assert len(expected) > 100
    assert one_epoch(open_blocks(folder, blocks_class)) == expected


@pytest.mark.parametrize("document_by", ["line", "blank_line", "file"])
def test_text_in_pieces_is_the_text(document_by, tmp_path, open_blocks, monkeypatch, masked_tokenizer):
    """Also if a line is longer than a piece, or the last line has no newline."""
    lines = [*make_lines(50), "x" * 300, "", "", "é" * 100, *make_lines(20, seed=1)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    cached = open_blocks(tmp_path / "text.txt", streaming=False, document_by=document_by)
    for size in (37, 64, 1000, 10**6):
        monkeypatch.setattr(text_files, "PIECE_SIZE", size)
        stream = open_blocks(tmp_path / "text.txt", document_by=document_by)
        tokens = np.concatenate([example["input_ids"] for example in one_epoch(stream)])
        assert tokens.tolist() == cached.store.tokens.tolist()


def test_pairs_are_those_of_the_cache_where_one_window_holds_the_epoch(tmp_path, open_blocks, monkeypatch):
    folder = write_shards(tmp_path / "text", make_documents(60), 1)
    cached = open_blocks(folder, SentencePairs, streaming=False)
    expected = [plain(cached[i]) for i in range(len(cached))]
    monkeypatch.setattr(streaming, "WINDOW_TOKENS", 10**6)
    assert one_epoch(open_blocks(folder, SentencePairs)) == expected


def test_pairs_of_many_windows(tmp_path, open_blocks):
    """As many pairs as cached, every number once, half of them negatives."""
    folder = write_shards(tmp_path / "text", make_documents(600), 2)
    cached = open_blocks(folder, SentencePairs, streaming=False)
    stream = open_blocks(folder, SentencePairs, shuffle_buffer_size=50)
    pairs = one_epoch(stream)
    assert sorted(pair["index"] for pair in pairs) == list(range(len(cached)))
    share = np.mean([pair["next_sentence_label"] for pair in pairs])
    assert abs(share - 0.5) < 4 * 0.5 / len(pairs) ** 0.5


# Conservation


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("num_shards", [1, 3, 4])
@pytest.mark.parametrize("shuffle_buffer_size", [0, 20])
def test_every_document_once_an_epoch(num_processes, num_shards, shuffle_buffer_size, tmp_path, open_blocks):
    """Over all processes, in each of three epochs; about as many for each process; in a new order if shuffled."""
    documents = make_documents(100)
    folder = write_shards(tmp_path / "text", documents, num_shards)
    lines = open_blocks(folder, DocumentBlocks, streaming=False)
    expected = sorted(plain(lines[i])["input_ids"] for i in range(100))
    epochs = [[], [], []]
    for process in range(num_processes):
        blocks = iter(open_blocks(folder, DocumentBlocks, True, shuffle_buffer_size, (process, num_processes)))
        counts = [0, 0, 0]
        while True:
            example = plain(next(blocks))
            if example["epoch"] == 3:
                break
            epochs[example["epoch"]].append((example["index"], example["input_ids"]))
            counts[example["epoch"]] += 1
        assert all(abs(count - 100 / num_processes) <= num_shards for count in counts)
    for epoch in epochs:
        assert sorted(ids for _, ids in epoch) == expected
        assert len({index for index, _ in epoch}) == 100
    orders = [[ids for _, ids in epoch] for epoch in epochs]
    assert (orders[0] != orders[1] and orders[1] != orders[2]) == bool(shuffle_buffer_size)


@pytest.mark.parametrize("shuffle_buffer_size", [0, 20])
def test_every_token_once_an_epoch(shuffle_buffer_size, tmp_path, open_blocks):
    folder = write_shards(tmp_path / "text", make_documents(200), 3)
    cached = open_blocks(folder, streaming=False)
    parts = [one_epoch(open_blocks(folder, PackedBlocks, True, shuffle_buffer_size, (p, 2))) for p in range(2)]
    lengths = [len(example["input_ids"]) for part in parts for example in part]
    assert sum(length < 32 for length in lengths) <= 2  # the last block of each process
    tokens = np.concatenate([example["input_ids"] for part in parts for example in part])
    assert np.bincount(tokens).tolist() == np.bincount(cached.store.tokens).tolist()


def test_same_seed_same_order(tmp_path, open_blocks):
    folder = write_shards(tmp_path / "text", make_documents(100), 2)
    orders = [one_epoch(open_blocks(folder, DocumentBlocks, True, 20, seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_too_few_documents_for_the_processes(tmp_path, open_blocks):
    folder = write_shards(tmp_path / "text", ["one document"], 1)
    with pytest.raises(UsageError, match="no document to train on for each of 2 processes"):
        next(iter(open_blocks(folder, part=(1, 2))))


def test_no_token(tmp_path, open_blocks):
    folder = write_shards(tmp_path / "text", [" ", ""], 1)
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UsageError, match="not one token"):
        next(iter(open_blocks(tmp_path / "empty.jsonl")))
    assert len(next(iter(open_blocks(folder)))["input_ids"])


# Resuming


@pytest.mark.parametrize("blocks_class", [PackedBlocks, PackedBlocksWithSpecialTokens, DocumentBlocks, SentencePairs])
@pytest.mark.parametrize("shuffle_buffer_size", [0, 20])
def test_state_resumes_where_it_was(blocks_class, shuffle_buffer_size, tmp_path, open_blocks):
    """From a file, at many places, across the end of an epoch; and state() does not change what comes next."""
    folder = write_shards(tmp_path / "text", make_documents(120), 3)
    open_part = partial(open_blocks, folder, blocks_class, True, shuffle_buffer_size, (1, 2))
    blocks = iter(open_part())
    num_blocks = 2 * len(one_epoch(open_part())) + 20
    expected = [plain(next(blocks)) for _ in range(num_blocks)]
    assert expected[-1]["epoch"] == 2 if "epoch" in expected[0] else True
    for place in sorted({*range(1, num_blocks, num_blocks // 7), num_blocks // 2, num_blocks // 2 + 1}):
        stream = open_part()
        blocks = iter(stream)
        for _ in range(place):
            next(blocks)
        stream.state = blocks.state()
        other_process = open_blocks(folder, blocks_class, True, shuffle_buffer_size, (0, 2))
        checkpoint = tmp_path / f"checkpoint-{place}"
        checkpoint.mkdir()
        stream.save_state(checkpoint)
        other_process.save_state(checkpoint)
        assert plain(next(blocks)) == expected[place]
        resumed = open_part()
        resumed.load_state(checkpoint)
        assert [plain(example) for example in itertools.islice(resumed, num_blocks - place)] == expected[place:]


def test_nothing_passed_is_tokenized_again(tmp_path, open_blocks):
    """A resumed stream tokenizes each document once that the stream before had not returned."""
    folder = write_shards(tmp_path / "text", make_documents(400), 4)
    first = open_blocks(folder, DocumentBlocks, True, 30)
    blocks = iter(first)
    for _ in range(250):
        next(blocks)
    first.state = blocks.state()
    first.save_state(tmp_path)
    position = first.state["documents"]["source"]["position"]
    assert position.shards_done == 2  # of 4; the first 250 documents and the 30 in the buffer are read

    resumed = open_blocks(folder, DocumentBlocks, True, 30)
    tokenized = []
    encode = resumed.tokens.encoder
    object.__setattr__(resumed.tokens, "encoder", lambda texts, _: (tokenized.extend(texts), encode(texts))[1])
    resumed.load_state(tmp_path)
    blocks = iter(resumed)
    assert all(next(blocks)["epoch"] == 0 for _ in range(150))
    assert next(blocks)["epoch"] == 1
    expected = []
    for place, (shard, _, _) in enumerate(blocks.documents.source._shards(0)):
        if place >= position.shards_done:
            rows = first.tokens.documents.read(shard, position.row if place == position.shards_done else 0)
            expected += [row["text"] for _, some in rows for row in some]
    assert len(expected) < 150
    assert tokenized[: len(expected)] == expected
    assert len(set(tokenized[len(expected) :])) == len(tokenized) - len(expected)  # of the next epoch


def test_what_changed_is_named(tmp_path, open_blocks):
    folder = write_shards(tmp_path / "text", make_documents(40), 3)
    stream = open_blocks(folder, DocumentBlocks, True, 20)
    stream.save_state(tmp_path)
    open_blocks(folder, DocumentBlocks, True, 20).load_state(tmp_path)
    for options, expected in (
        ({"shuffle_buffer_size": 10}, "--shuffle_buffer_size changed"),
        ({"seed": 1}, "--seed changed"),
        ({"part": (0, 2)}, "written by 1 processes.*now there are 2: start 1 processes"),
        ({"blocks_class": PackedBlocksWithSpecialTokens}, "what an example is changed"),
    ):
        options = {"blocks_class": DocumentBlocks, "shuffle_buffer_size": 20} | options
        with pytest.raises(UsageError, match=expected):
            open_blocks(folder, **options).load_state(tmp_path)
    (folder / "0.jsonl").write_text('{"text": "other text"}\n')
    with pytest.raises(UsageError, match="the text, document_text or the tokenizer changed"):
        open_blocks(folder, DocumentBlocks, True, 20).load_state(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="written without --streaming"):
        stream.load_state(tmp_path / "empty")


# The loader


def test_state_follows_the_batches_used(tmp_path, open_blocks):
    """Not what its thread has read ahead. The thread ends with the loader."""
    folder = write_shards(tmp_path / "text", make_documents(100), 1)
    stream = open_blocks(folder, DocumentBlocks)
    loader = StreamLoader(stream, 4, lambda examples: {"index": [e["index"] for e in examples]}, num_batches=10)
    batches = iter(loader)
    for i in range(5):
        assert next(batches)["index"] == list(range(4 * i, 4 * i + 4))
    assert next(iter(stream))["index"] == 20
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "stream"]
    assert next(iter(loader))["index"] == [20, 21, 22, 23]


def test_loader_raises_the_errors_of_its_thread(tmp_path, open_blocks):
    folder = write_shards(tmp_path / "text", make_documents(100), 2, ".txt")
    with open(folder / "1.txt", "ab") as file:
        file.write(b"\xff\n")
    loader = StreamLoader(open_blocks(folder, DocumentBlocks), 8, list, num_batches=1000)
    with pytest.raises(UsageError, match=r"1\.txt: not UTF-8 at byte"):
        for _ in loader:
            pass


def test_memory_does_not_grow_with_the_corpus(tmp_path, open_blocks, monkeypatch):
    """The peak of what Python and NumPy allocate grows by less than a small share of the additional text."""
    monkeypatch.setattr(file_formats, "READ_SIZE", 20_000)
    peaks, sizes = [], []
    for factor in (1, 5):
        folder = write_shards(tmp_path / f"text{factor}", make_documents(600 * factor), 1, ".txt")
        stream = open_blocks(folder, PackedBlocks, True, 500)
        object.__setattr__(stream.tokens, "num_workers", 1)  # so that both read ahead equally far
        gc.collect()
        tracemalloc.start()
        blocks = iter(stream)
        while blocks.state()["epoch"] < 1:
            next(blocks)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append((folder / "0.txt").stat().st_size)
    assert peaks[1] - peaks[0] < 0.2 * (sizes[1] - sizes[0])
