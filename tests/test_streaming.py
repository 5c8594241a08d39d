"""Streams: the blocks of cached text, every document once an epoch, whoever reads it and wherever it goes on."""

import gc
import gzip
import itertools
import json
import threading
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import make_lines
from datasets import Dataset
from safetensors.torch import load_file

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.examples import streaming
from utils.examples.document_blocks import DocumentBlocks
from utils.examples.packed import PackedBlocks, PackedBlocksWithSpecialTokens
from utils.examples.sentence_pairs import SentencePairs
from utils.examples.streaming import StreamLoader, make_blocks
from utils.text import document_stream, text_files
from utils.text.corpus import load_corpus
from utils.text.document_stream import DocumentStream, HeldOut
from utils.text.segmentation import Segmenter
from utils.tokens import token_stream
from utils.tokens.token_store import tokenize_documents


FRAME = ([0], [2])


def document_text(row: dict) -> str | None:
    return row["text"]


def make_documents(number: int, seed: int = 0) -> list[str]:
    """Documents of one to nine lines, each beginning with its own number."""
    lines = iter(make_lines(9 * number, seed))
    return ["\n".join([f"{i}:", *itertools.islice(lines, i % 9)]) for i in range(number)]


def write_shards(folder: Path, documents: list[str], num_shards: int, suffix: str = ".jsonl") -> Path:
    folder.mkdir()
    edges = [round(i * len(documents) / num_shards) for i in range(num_shards + 1)]
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        path = folder / f"{i}{suffix}"
        rows = documents[start:end]
        if suffix == ".parquet":
            Dataset.from_dict({"text": rows}).to_parquet(path)
        elif suffix == ".txt":
            path.write_text("".join(f"{row}\n" for text in rows for row in text.split("\n")))
        else:
            content = "".join(json.dumps({"text": text}) + "\n" for text in rows).encode()
            path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    return folder


@pytest.fixture
def open_blocks(tmp_path, masked_tokenizer, monkeypatch):
    """`open_blocks(folder, blocks_class, streaming=True, ...)`: the blocks of a corpus, streamed or not."""
    monkeypatch.setattr(streaming, "WINDOW_TOKENS", 500)
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
        return make_blocks(blocks_class, tokens, 32, *([] if blocks_class is PackedBlocks else [FRAME]))

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
    """Also where a line is longer than a piece, or the last one has no end."""
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
    """As many pairs as cached, every number once, and half of them negatives."""
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
    """Over all processes, in each of three epochs; about as many for each process; in another order if shuffled."""
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


# Held out


def test_held_out_rows():
    """Disjoint and complete by construction; the share within four standard errors, in every shard."""
    for percentage in (1, 5, 50):
        for shard in range(3):
            held_out = HeldOut(percentage, seed=7)(shard, np.arange(20_000))
            error = (percentage / 100 * (1 - percentage / 100) / 20_000) ** 0.5
            assert abs(held_out.mean() - percentage / 100) < 4 * error
    rows = np.arange(1000)
    assert not np.array_equal(HeldOut(50, 7)(0, rows), HeldOut(50, 8)(0, rows))
    assert not np.array_equal(HeldOut(50, 7)(0, rows), HeldOut(50, 7)(1, rows))
    assert np.array_equal(HeldOut(50, 7)(0, rows)[500:], HeldOut(50, 7)(0, rows[500:]))


def test_held_out_documents_are_not_trained_on(tmp_path):
    documents = make_documents(300)
    folder = write_shards(tmp_path / "text", documents, 3)
    data_args = DataArguments(train_file=[str(folder)], streaming=True, validation_split_percentage=20)
    training_args = LMTrainingArguments(output_dir=str(tmp_path / "out"), max_steps=5, use_cpu=True, bf16=False)
    splits = load_corpus(data_args, training_args, str(tmp_path / "cache"), None)
    texts = {split: [text for batch in splits[split].iter(10) for text in batch["text"]] for split in splits}
    assert not set(texts["train"]) & set(texts["validation"])
    assert sorted(texts["train"] + texts["validation"]) == sorted(documents)
    assert 30 < len(texts["validation"]) < 90


# Going on


@pytest.mark.parametrize("blocks_class", [PackedBlocks, PackedBlocksWithSpecialTokens, DocumentBlocks, SentencePairs])
@pytest.mark.parametrize("shuffle_buffer_size", [0, 20])
def test_state_goes_on_where_it_was(blocks_class, shuffle_buffer_size, tmp_path, open_blocks):
    """Through a file, from many places, over the end of an epoch; state() does not disturb the blocks it is of."""
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
    """A resumed stream tokenizes what the one before had not handed over, from there on, each document once."""
    folder = write_shards(tmp_path / "text", make_documents(400), 4)
    first = open_blocks(folder, DocumentBlocks, True, 30)
    blocks = iter(first)
    for _ in range(250):
        next(blocks)
    first.state = blocks.state()
    first.save_state(tmp_path)
    position = first.state["documents"]["source"]["position"]
    assert position.turn == 2  # of 4: of those 250 and the 30 in the buffer nothing is left to read

    resumed = open_blocks(folder, DocumentBlocks, True, 30)
    tokenized = []
    encode = resumed.tokens.encoder
    object.__setattr__(resumed.tokens, "encoder", lambda texts: (tokenized.extend(texts), encode(texts))[1])
    resumed.load_state(tmp_path)
    blocks = iter(resumed)
    assert all(next(blocks)["epoch"] == 0 for _ in range(150))
    assert next(blocks)["epoch"] == 1
    expected = []
    for turn, (shard, _, _) in enumerate(blocks.documents.source._turns(0)):
        if turn >= position.turn:
            rows = first.tokens.documents.read(shard, position.row if turn == position.turn else 0)
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
        ({"part": (0, 2)}, "written by 1 processes.*there are 2 now: start as many"),
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


def test_loader_follows_what_was_given_out(tmp_path, open_blocks):
    """Not what its thread has read ahead; and the thread ends with the loader."""
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


def test_loader_raises_what_its_thread_meets(tmp_path, open_blocks):
    folder = write_shards(tmp_path / "text", make_documents(100), 2, ".txt")
    with open(folder / "1.txt", "ab") as file:
        file.write(b"\xff\n")
    loader = StreamLoader(open_blocks(folder, DocumentBlocks), 8, list, num_batches=1000)
    with pytest.raises(UsageError, match=r"1\.txt: not UTF-8 at byte"):
        for _ in loader:
            pass


def test_memory_does_not_grow_with_the_corpus(tmp_path, open_blocks, monkeypatch):
    """The peak of what Python and numpy allocate; of what is read more, no more than a small share is ever held."""
    monkeypatch.setattr(text_files, "READ_SIZE", 20_000)
    peaks, sizes = [], []
    for factor in (1, 5):
        folder = write_shards(tmp_path / f"text{factor}", make_documents(600 * factor), 1, ".txt")
        stream = open_blocks(folder, PackedBlocks, True, 500)
        object.__setattr__(stream.tokens, "num_workers", 1)  # so that as much is read ahead in both
        gc.collect()
        tracemalloc.start()
        blocks = iter(stream)
        while blocks.state()["epoch"] < 1:
            next(blocks)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append((folder / "0.txt").stat().st_size)
    assert peaks[1] - peaks[0] < 0.2 * (sizes[1] - sizes[0])


# The scripts


@pytest.mark.parametrize(
    ("script", "kind"), [(run_clm, "gpt2"), (run_mlm, "roberta"), (run_plm, "xlnet"), (run_pretraining, "bert")]
)
def test_scripts_stream(script, kind, tmp_path, run, masked_tokenizer):
    """Trained for some epochs of a stream, every script's loss falls; the held-out part is evaluated."""
    folder = write_shards(tmp_path / "text", make_documents(300), 2)
    masked_tokenizer.save_pretrained(tmp_path / "tokenizer")
    sizes = {
        "gpt2": "n_layer=1,n_embd=16,n_head=2,n_positions=64",
        "xlnet": "n_layer=1,d_model=16,n_head=2,d_inner=32",
    }.get(kind, "num_hidden_layers=1,hidden_size=16,intermediate_size=32,num_attention_heads=2")
    results = run(
        tmp_path / "out", "--streaming", "--max_steps", 20, "--model_type", kind, "--config_overrides", sizes,
        "--tokenizer_name", tmp_path / "tokenizer", "--train_file", folder, "--block_size", 32,
        "--per_device_train_batch_size", 8, "--learning_rate", 1e-2, "--validation_split_percentage", 20,
        script=script,
    )  # fmt: skip
    assert results["train_tokens"] > 20 * 8 * 16
    assert "train_samples" not in results
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    assert results["eval_samples"] > 10


def test_streamed_training_is_cached_training_in_order(tmp_path, run, checkpoint):
    """Of one epoch, unshuffled on both sides: the same weights, since the blocks, and the batches, are the same."""
    folder = write_shards(tmp_path / "text", make_documents(100), 2)
    common = [
        "--model_name_or_path", checkpoint("gpt2"), "--train_file", folder, "--do_train", "--block_size", 32,
        "--per_device_train_batch_size", 4, "--max_steps", 10,
    ]  # fmt: skip
    run(tmp_path / "streamed", *common, "--streaming", "--shuffle_buffer_size", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.training.batch_sampler.epoch_order", lambda num_examples, *args: np.arange(num_examples))
        run(tmp_path / "cached", *common)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("streamed", "cached")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_resumed_stream_ends_with_the_same_weights(tmp_path, run, checkpoint):
    """Killed after a checkpoint, with dropout and over the end of an epoch."""
    folder = write_shards(tmp_path / "text", make_documents(60), 3)
    common = [
        "--model_name_or_path", checkpoint("gpt2", resid_pdrop=0.1), "--train_file", folder, "--do_train",
        "--block_size", 32, "--per_device_train_batch_size", 4, "--max_steps", 40, "--streaming",
        "--shuffle_buffer_size", 15, "--save_strategy", "steps", "--save_steps", 7, "--save_total_limit", 20,
    ]  # fmt: skip
    run(tmp_path / "whole", *common)
    assert json.loads((tmp_path / "whole" / "trainer_state.json").read_text())["epoch"] >= 1
    for last in (7, 21):
        out = tmp_path / f"killed-{last}"
        (tmp_path / "whole" / f"checkpoint-{last}").rename(tmp_path / "moved")
        out.mkdir()
        (tmp_path / "moved").rename(out / f"checkpoint-{last}")
        run(out, *common)
        weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out)]
        assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_a_stream_that_breaks_off(tmp_path, run, checkpoint, common_args, monkeypatch, capsys):
    """What was trained is saved, the run ends with 1, and the same command goes on as if nothing had been."""
    monkeypatch.setattr(streaming, "WINDOW_TOKENS", 500)
    monkeypatch.setattr(token_stream, "CHARACTERS_PER_TASK", 1000)
    monkeypatch.setattr(document_stream, "ROWS_PER_READ", 10)
    folder = write_shards(tmp_path / "text", make_documents(600), 3)
    common = [
        "--model_name_or_path", checkpoint("gpt2", resid_pdrop=0.1), "--train_file", folder, "--do_train",
        "--block_size", 128, "--per_device_train_batch_size", 16, "--max_steps", 25, "--streaming",
        "--shuffle_buffer_size", 0, "--save_strategy", "no",
    ]  # fmt: skip
    run(tmp_path / "whole", *common)

    read = DocumentStream.read

    def read_until_the_network_fails(stream, shard, *args, **kwargs):
        if shard == 2:
            raise UsageError("--dataset_name books: the network cannot be reached")
        yield from read(stream, shard, *args, **kwargs)

    monkeypatch.setattr(DocumentStream, "read", read_until_the_network_fails)
    args = ["--output_dir", tmp_path / "out", *common_args, *common]
    with pytest.raises(SystemExit) as ended:
        run_clm.main([str(arg) for arg in args])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    (checkpoint_of_the_end,) = (tmp_path / "out").glob("checkpoint-*")
    step = int(checkpoint_of_the_end.name.removeprefix("checkpoint-"))
    assert 0 < step < 25
    assert any(f"network cannot be reached; step {step} is saved in" in line for line in lines)
    assert any("to go on: " in line for line in lines)

    monkeypatch.setattr(DocumentStream, "read", read)
    run(tmp_path / "out", *common)
    weights = [load_file(tmp_path / out / "model.safetensors") for out in ("whole", "out")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_evaluation_of_a_stream_is_that_of_cached_text(tmp_path, run, checkpoint):
    folder = write_shards(tmp_path / "text", make_documents(100), 2)
    common = ["--model_name_or_path", checkpoint("gpt2"), "--validation_file", folder, "--do_eval", "--block_size", 32]
    streamed, cached = run(tmp_path / "s", *common, "--streaming"), run(tmp_path / "c", *common)
    keys = ("eval_loss", "eval_tokens", "eval_samples", "bits_per_byte")
    assert {key: streamed[key] for key in keys} == {key: cached[key] for key in keys}
    limited = ["--max_eval_samples", 7]
    streamed, cached = run(tmp_path / "s", *common, *limited, "--streaming"), run(tmp_path / "c", *common, *limited)
    assert {key: streamed[key] for key in keys} == {key: cached[key] for key in keys}


def test_refusals(tmp_path, refused, checkpoint):
    folder = write_shards(tmp_path / "text", make_documents(10), 1)
    common = ["--model_name_or_path", checkpoint("gpt2"), "--train_file", folder, "--streaming"]
    assert "set the length of the training with --max_steps" in refused(*common)
    stepped = [*common, "--max_steps", 5]
    assert "--eval_strategy epoch" in refused(*stepped, "--eval_strategy", "epoch")
    assert "--max_train_samples" in refused(*stepped, "--max_train_samples", 5)
    assert "--preprocess_only and --streaming contradict" in refused(*stepped, "--preprocess_only")
    assert "--shuffle_buffer_size -1" in refused(*stepped, "--shuffle_buffer_size", -1)
    assert "goes with --streaming" in refused(*stepped[:4], "--shuffle_buffer_size", 5)
    assert "no such column" in refused(*stepped, "--text_column", "body")
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty" in refused(*stepped, "--train_file", tmp_path / "empty.jsonl", "--do_train")
