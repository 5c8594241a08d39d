"""A user's mistake ends the run early with one line that names the flag or file and the remedy. Nothing is written."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import run_clm
from utils.compat import TRANSFORMERS_5


ROOT = Path(run_clm.__file__).parent
STAGES = ("load_corpus", "load_tokenizer", "tokenize_documents", "load_model", "LMTrainer")
CONFIG = "n_embd=8,n_layer=1,n_head=2,n_positions=32"
MODEL = ["--model_type", "gpt2", "--config_overrides", CONFIG]
NEW_TOKENIZER = ["--train_tokenizer", "bpe", "--vocab_size", "300"]
SCRATCH = [*MODEL, *NEW_TOKENIZER]
DOCS = ["--dataset_name", "builtin/python-docs"]


@pytest.fixture
def refused_before(refused, monkeypatch, tmp_path):
    """Like `refused`; the script must end before the given stage. {tmp} in flags is replaced by tmp_path."""

    def call(stage: str, *flags, **options) -> str:
        def reached(name: str):
            def fail(*args, **kwargs):
                raise AssertionError(f"{name} was reached")

            return fail

        for name in STAGES[STAGES.index(stage) :]:
            monkeypatch.setattr(run_clm, name, reached(name))
        message = refused(*(str(flag).replace("{tmp}", str(tmp_path)) for flag in flags), **options)
        assert message.startswith("run_clm.py: error: ")
        return message.removeprefix("run_clm.py: error: ")

    return call


@pytest.fixture
def tokenizer_folder(tokenizer, tmp_path) -> Path:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """The content of each path in the folder; None for a folder."""
    paths = folder.rglob("*")
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


# Flags


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--trian_file x", ["--trian_file", "--train_file"]),
        ("stray.txt", ["stray.txt"]),
        ("--learning_rate fast", ["--learning_rate", "fast"]),
        ("--eval_strategy sometimes", ["sometimes"]),
        # text
        ("--dataset_path p", ["--dataset_name", "--dataset_path", "give only one of them"]),
        ("--train_file t.txt", ["--dataset_name", "--train_file", "give only one of them"]),
        ("--validation_file v.txt", ["--dataset_name", "--validation_file", "give only one of them"]),
        ("--validation_split_percentage 0", ["--validation_split_percentage 0", "1..99", "--do_train"]),
        ("--validation_split_percentage 100", ["--validation_split_percentage 100", "1..99", "--do_train"]),
        ("--validation_split_percentage -1", ["--validation_split_percentage -1", "1..99"]),
        ("--max_train_samples 0", ["--max_train_samples 0", "1 or more"]),
        ("--max_eval_samples -1", ["--max_eval_samples -1", "1 or more"]),
        ("--preprocessing_num_workers 0", ["--preprocessing_num_workers 0", "1 or more"]),
        # blocks
        ("--block_size 0", ["--block_size 0", "2 or more"]),
        ("--block_size 1", ["--block_size 1", "2 or more"]),
        ("--block_size 33", ["--block_size 33", "32 positions", "--config_overrides n_positions=33"]),
        # model and tokenizer
        ("--model_name_or_path m", ["--config_overrides", "--model_name_or_path", "leave out"]),
        ("--model_type gtp2", ["--model_type gtp2", "gpt2"]),
        ("--model_type bert", ["--model_type bert", "not train models of type bert"]),
        ("--model_type xlnet", ["--model_type xlnet", "not train models of type xlnet"]),
        ("--attn_implementation org/repo", ["--attn_implementation org/repo", "--trust_remote_code"]),
        ("--config_overrides n_layers=2", ["--config_overrides n_layers=2", "n_layer"]),
        ("--config_overrides n_layer=two", ["--config_overrides n_layer=two", "int", "n_layer=12"]),
        ("--config_overrides n_layer", ["--config_overrides n_layer", "key=value"]),
        ("--config_overrides n_embd=10,n_head=3", ["--config_overrides n_embd=10,n_head=3", "divisible"]),
        ("--tokenizer_name t", ["--train_tokenizer", "--tokenizer_name", "leave out"]),
        # training
        ("--save_safetensors false", ["--save_safetensors false", "leave it out"]),
        ("--average_tokens_across_devices false", ["--average_tokens_across_devices false"]),
        ("--metric_for_best_model perplexity", ["--metric_for_best_model", "eval_loss"]),
        ("--metric {tmp}/no-metric", ["--metric {tmp}/no-metric"]),
        ("--report_to pigeon", ["pigeon", "tensorboard"]),
        ("--per_device_train_batch_size 0", ["--per_device_train_batch_size"]),
        ("--per_device_eval_batch_size 0", ["--per_device_eval_batch_size"]),
        ("--gradient_accumulation_steps 0", ["--gradient_accumulation_steps"]),
        ("--seed -1", ["--seed"]),
        ("--sample_tokens -1", ["--sample_tokens"]),
        # output
        ("--output_dir=", ["--output_dir"]),
        ("--resume_from_checkpoint {tmp}/none", ["--resume_from_checkpoint {tmp}/none", "no checkpoint"]),
        ("--resume_from_checkpoint {tmp}", ["--resume_from_checkpoint {tmp}", "trainer_state.json"]),
        ("--resume_from_checkpoint true", ["--resume_from_checkpoint", "no checkpoint"]),
    ],
)
def test_one_wrong_flag(refused_before, tmp_path, flags, named):
    message = refused_before("load_corpus", *SCRATCH, *DOCS, *flags.split())
    for part in named:
        assert part.replace("{tmp}", str(tmp_path)) in message


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (SCRATCH, ["no text", "--train_file", "--validation_file", "--dataset_name"]),
        (
            [*SCRATCH, "--dataset_path", "p", "--train_file", "t.txt"],
            ["--dataset_path", "--train_file", "give only one of them"],
        ),
        ([*SCRATCH, "--dataset_path", "p", "--validation_file", "v"], ["--dataset_path", "--validation_file"]),
        ([*SCRATCH, "--train_file", "t.txt", "--dataset_config_name", "c"], ["--dataset_config_name goes with"]),
        ([*NEW_TOKENIZER, *DOCS], ["no model", "--model_name_or_path", "--model_type", "--config_name"]),
        ([*MODEL, *DOCS], ["no tokenizer", "--tokenizer_name", "--train_tokenizer"]),
        ([*NEW_TOKENIZER, *DOCS, "--model_name_or_path", "m"], ["--train_tokenizer", "--model_name_or_path"]),
        ([*DOCS, "--model_name_or_path", "m", "--config_name", "c"], ["--config_name", "--model_name_or_path"]),
        ([*DOCS, "--model_name_or_path", "m", "--model_type", "gpt2"], ["--model_type", "--model_name_or_path"]),
        ([*DOCS, "--model_name_or_path", "{tmp}/no-model"], ["{tmp}/no-model"]),
        ([*DOCS, "--model_name_or_path", "no-one/no-model"], ["no-one/no-model"]),
        ([*DOCS, "--config_name", "{tmp}/no-config"], ["{tmp}/no-config"]),
    ],
)
def test_wrong_combinations_of_flags(refused_before, tmp_path, flags, named):
    message = refused_before("load_corpus", *flags)
    for part in named:
        assert part.replace("{tmp}", str(tmp_path)) in message


def test_bf16_without_hardware_for_it(refused_before, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert "--bf16" in refused_before("load_corpus", *SCRATCH, *DOCS, "--bf16", "true")


def test_block_longer_than_the_positions_of_a_checkpoint(refused_before, checkpoint, train_file):
    flags = ["--model_name_or_path", checkpoint("llama"), "--train_file", train_file, "--block_size", "129"]
    assert "--block_size 129 is more than the 128 positions" in refused_before("load_corpus", *flags)


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--config_name"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"model_type": "gpt2",}', '{"model_type": "bert"}'])
def test_folder_without_a_usable_config(refused_before, tmp_path, flag, content):
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content)
    assert str(folder) in refused_before("load_corpus", flag, folder, *DOCS)


# Output folder


def test_output_folder_that_is_a_file(refused_before, tmp_path):
    file = tmp_path / "results"
    file.write_text("mine")
    message = refused_before("load_corpus", *SCRATCH, *DOCS, output_dir=file)
    assert f"--output_dir {file}" in message and "give a folder" in message
    assert file.read_text() == "mine"


def test_output_folder_below_a_file(refused_before, tmp_path):
    (tmp_path / "file").write_text("mine")
    message = refused_before("load_corpus", *SCRATCH, *DOCS, output_dir=tmp_path / "file" / "results")
    assert f"--output_dir {tmp_path / 'file' / 'results'}" in message


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the system has no folder that not even root can write to")
@pytest.mark.parametrize(("folder", "denied"), [("/proc/self/task", "/proc/self/task"), ("/proc/locked/x", "/proc")])
def test_output_folder_that_is_not_writable(refused_before, folder, denied):
    message = refused_before("load_corpus", *SCRATCH, *DOCS, output_dir=Path(folder))
    assert f"--output_dir {folder}: {denied} is not a folder that you may write to" in message


@pytest.fixture
def earlier_run(tmp_path) -> Path:
    """The files that a run of this suite leaves, with little in them."""
    folder = tmp_path / "results"
    for name in (
        "run_args.yaml",
        "all_results.json",
        "model.safetensors",
        "runs/events",
        "checkpoint-3/run_args.yaml",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3, "max_steps": 3}')
    return folder


@pytest.mark.parametrize("name", ["notes.txt", "data/notes.txt", "checkpoint-7/trainer_state.json", "config.json"])
def test_output_folder_in_use_by_something_else(refused_before, tmp_path, name):
    folder = tmp_path / "results"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    before = snapshot(folder)
    message = refused_before("load_corpus", *SCRATCH, *DOCS, output_dir=folder)
    assert f"--output_dir {folder}" in message and "--overwrite_output_dir" in message
    assert snapshot(folder) == before


def test_refusing_to_resume_without_overwriting(refused_before, earlier_run):
    before = snapshot(earlier_run)
    flags = [*SCRATCH, *DOCS, "--resume_from_checkpoint", "false"]
    message = refused_before("load_corpus", *flags, output_dir=earlier_run)
    assert str(earlier_run) in message and "--overwrite_output_dir" in message
    assert snapshot(earlier_run) == before


def test_overwriting_the_checkpoint_to_resume_from(refused_before, earlier_run):
    before = snapshot(earlier_run)
    flags = [*SCRATCH, *DOCS, "--resume_from_checkpoint", earlier_run / "checkpoint-3", "--overwrite_output_dir"]
    message = refused_before("load_corpus", *flags, output_dir=earlier_run)
    assert "--overwrite_output_dir" in message and "--resume_from_checkpoint" in message
    assert snapshot(earlier_run) == before


def test_overwriting_keeps_foreign_files_and_trains_from_the_start(run, checkpoint, train_file, tmp_path):
    folder = tmp_path / "results"
    flags = [
        "--model_name_or_path",
        checkpoint("gpt2"),
        "--train_file",
        train_file,
        "--do_train",
        "--block_size",
        "16",
    ]
    flags += ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1", "--logging_steps", "1"]
    run(folder, *flags, "--max_steps", "2")
    for name in ("notes.txt", "data/notes.txt", "checkpoint-7/trainer_state.json", "checkpoint-7/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    (folder / "checkpoint-latest").mkdir()
    foreign = {name: content for name, content in snapshot(folder).items() if content and b"mine" in content}
    assert len(foreign) == 4 and (folder / "checkpoint-2").exists()
    run(folder, *flags, "--max_steps", "1", "--overwrite_output_dir")
    after = snapshot(folder)
    assert foreign.items() <= after.items() and (folder / "checkpoint-latest").exists()
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-7",
        "checkpoint-latest",
    ]
    state = json.loads(after["trainer_state.json"])
    assert state["global_step"] == 1 and [log["step"] for log in state["log_history"] if "loss" in log] == [1]


@pytest.mark.parametrize(
    ("stage", "flags", "named"),
    [
        ("load_corpus", [*SCRATCH, *DOCS, "--block_size", "999"], "--block_size"),
        ("load_corpus", [*SCRATCH, *DOCS, "--metric", "no-such-metric"], "--metric no-such-metric"),
        ("load_tokenizer", [*SCRATCH, "--train_file", "{tmp}/missing.txt"], "{tmp}/missing.txt"),
        ("tokenize_documents", [*MODEL, *DOCS, "--tokenizer_name", "{tmp}/missing"], "{tmp}/missing"),
        ("load_model", [*SCRATCH, "--train_file", "{tmp}/short.txt"], "--block_size"),
        ("LMTrainer", [*DOCS, "--model_name_or_path", "{tmp}/gpt2-checkpoint"], "{tmp}/gpt2-checkpoint"),
    ],
)
def test_mistake_with_overwriting_destroys_nothing(
    refused_before, checkpoint, earlier_run, tmp_path, stage, flags, named
):
    (checkpoint("gpt2") / "model.safetensors").unlink()
    (tmp_path / "short.txt").write_text("short\ntext\n")
    before = snapshot(earlier_run)
    message = refused_before(stage, *flags, "--overwrite_output_dir", output_dir=earlier_run)
    assert named.replace("{tmp}", str(tmp_path)) in message
    assert snapshot(earlier_run) == before


# Text


@pytest.mark.parametrize("flag", ["--train_file", "--validation_file"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.txt", "no such file"),
        ("missing/", "no such file or folder"),
        ("missing*.txt", "no file matches"),
        ("texts/*.csv", "no file matches"),
        ("texts", "contains no .txt"),
        ("texts/README.md", "must end in one of .txt"),
    ],
)
def test_missing_files(refused_before, train_file, tmp_path, flag, path, reason):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "README.md").write_text("not text for a model")
    flags = {"--train_file": train_file, flag: tmp_path / path}
    message = refused_before("load_tokenizer", *SCRATCH, *(word for pair in flags.items() for word in pair))
    assert f"{flag} {tmp_path / path}" in message and reason in message


@pytest.mark.parametrize("compression", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".txt", b"one\ntwo \xff\n"),
        (".csv", b"text\none\ntwo \xff\n"),
        (".tsv", b"text\none\ntwo \xff\n"),
        (".jsonl", b'{"text": "one"}\n{"text": "two \xff"}\n'),
        (".json", b'[{"text": "one"},\n{"text": "two \xff"}]\n'),
    ],
)
def test_text_that_is_not_utf8(refused_before, tmp_path, suffix, content, compression):
    file = tmp_path / f"latin{suffix}{compression}"
    file.write_bytes({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[compression](content))
    message = refused_before("load_tokenizer", *SCRATCH, "--train_file", file, "--do_train")
    assert f"{file}: not UTF-8 at byte {content.index(0xFF)} " in message and "iconv" in message


def test_which_of_several_files_is_not_utf8(refused_before, train_file, tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes(b"\xff")
    message = refused_before("load_tokenizer", *SCRATCH, "--train_file", train_file, file, train_file)
    assert f"{file}: not UTF-8 at byte 0 " in message


@pytest.mark.parametrize("compression", ["", ".gz", ".bz2"])
@pytest.mark.parametrize(
    ("suffix", "content", "line"),
    [
        (".jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": \n', 3),
        (".jsonl", '{"text": "a"}\n\n{"text" "b"}\n', 3),
        (".jsonl", 'text\n{"text": "b"}\n', 1),
        (".json", '[\n{"text": "a"},\n{"text": "b"\n', 4),
        (".json", '[{"text": "a"},\n{"text" "b"}]\n', 2),
        (".json", '{"text": "a"}\n{"text": }\n', 2),
    ],
)
def test_malformed_json(refused_before, tmp_path, suffix, content, line, compression):
    file = tmp_path / f"bad{suffix}{compression}"
    file.write_bytes({"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[compression](content.encode()))
    message = refused_before("load_tokenizer", *SCRATCH, "--train_file", file, "--do_train")
    assert f"{file}: malformed JSON in line {line}: " in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", ""),
        ("empty.txt.gz", ""),
        ("empty.csv", ""),
        ("empty.csv.gz", ""),
        ("header.csv", "text\n"),
        ("empty.tsv", ""),
        ("empty.json", ""),
        ("array.json", "[]"),
        ("empty.jsonl", ""),
        ("empty.jsonl.gz", ""),
        ("blank.jsonl", "\n\n"),
        ("empty.parquet", ""),
    ],
)
@pytest.mark.parametrize("flag", ["--train_file", "--validation_file"])
def test_empty_corpus(refused_before, train_file, tmp_path, flag, name, content):
    file = tmp_path / name
    file.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    flags = {"--train_file": train_file, flag: file}
    message = refused_before("load_tokenizer", *SCRATCH, *(word for pair in flags.items() for word in pair))
    assert f"{flag} {file}: the corpus is empty" in message


@pytest.mark.parametrize("split", ["train", "validation"])
def test_corpus_whose_documents_have_no_token(refused_before, train_file, tmp_path, split):
    file = tmp_path / "blank.txt"
    file.write_text("\n\n\n")
    flags = {"--train_file": train_file, "--validation_file": train_file, f"--{split}_file": file}
    words = [word for pair in flags.items() for word in pair]
    message = refused_before("load_model", *SCRATCH, *words, "--no_keep_linebreaks")
    assert f"the {split} corpus is empty" in message


@pytest.mark.parametrize(
    ("row", "flags", "named"),
    [
        ({"title": "a", "body": "b"}, [], ["--text_column text", "title", "body"]),
        ({"title": "a", "body": "b"}, ["--text_column", "content"], ["--text_column content", "title", "body"]),
        ({"id": 1}, [], ["--text_column text", "id"]),
    ],
)
def test_no_column_of_text(refused_before, tmp_path, row, flags, named):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(row)}\n" * 3)
    message = refused_before("load_model", *SCRATCH, "--train_file", file, *flags)
    assert all(part in message for part in named)


def test_training_without_training_text(refused_before, validation_file):
    message = refused_before("load_tokenizer", *SCRATCH, "--validation_file", validation_file, "--do_train")
    assert "--train_file" in message and "--do_eval" in message


def test_one_document_without_validation_text(refused_before, train_file):
    flags = [*SCRATCH, "--train_file", train_file, "--document_by", "file"]
    message = refused_before("load_tokenizer", *flags)
    assert all(part in message for part in ("one document", "--validation_file", "--do_train", "--document_by line"))


@pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
@pytest.mark.parametrize("flag", ["--dataset_path", "--dataset_name"])
def test_missing_dataset(refused_before, tmp_path, flag, kind):
    path = tmp_path / "saved"
    if kind == "empty":
        path.mkdir()
    elif kind == "a file":
        path.write_text("nothing")
    assert f"{flag} {path}" in refused_before("load_tokenizer", *SCRATCH, flag, path)


def test_corrupt_saved_dataset(refused_before, tmp_path):
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:20])
    assert f"--dataset_path {tmp_path / 'saved'}" in refused_before(
        "load_tokenizer", *SCRATCH, "--dataset_path", tmp_path / "saved"
    )


@pytest.mark.parametrize("num_words", [0, 5])
def test_evaluation_text_shorter_than_a_block(
    refused_before, train_file, tokenizer, tokenizer_folder, tmp_path, num_words
):
    file = tmp_path / "short.txt"
    file.write_text("the " * num_words + "\n")
    num_tokens = len(tokenizer(file.read_text()).input_ids)
    flags = [*MODEL, "--tokenizer_name", tokenizer_folder, "--train_file", train_file, "--validation_file", file]
    message = refused_before("load_model", *flags)
    assert f"has {num_tokens} tokens, less than one block of 32" in message
    assert f"--block_size {max(num_tokens, 2)} or less" in message


# Tokenizer and weights


@pytest.mark.parametrize("kind", ["missing", "empty", "a file", "hub"])
def test_missing_tokenizer(refused_before, train_file, tmp_path, kind):
    path = "no-one/no-tokenizer" if kind == "hub" else tmp_path / "no-tokenizer"
    if kind == "empty":
        path.mkdir()
    elif kind == "a file":
        path.write_text("nothing")
    message = refused_before("tokenize_documents", *MODEL, "--tokenizer_name", path, "--train_file", train_file)
    assert f"--tokenizer_name {path}: " in message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 3}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_malformed_tokenizer(refused_before, train_file, tokenizer_folder, name, content):
    if (name, content) in (("tokenizer_config.json", "{}"), ("tokenizer_config.json", '{"model": 3}')):
        (tokenizer_folder / "tokenizer.json").unlink()  # otherwise nothing would be wrong
    if name == "config.json":
        (tokenizer_folder / "tokenizer_config.json").unlink()
        if TRANSFORMERS_5 and content in ("{}", '{"model": 3}'):
            (tokenizer_folder / "tokenizer.json").unlink()  # which 5 can load on its own
    (tokenizer_folder / name).write_text(content)
    flags = [*MODEL, "--tokenizer_name", tokenizer_folder, "--train_file", train_file]
    assert f"--tokenizer_name {tokenizer_folder}: " in refused_before("tokenize_documents", *flags)


@pytest.mark.parametrize(("kind", "size"), [("bpe", 256), ("bpe", 1), ("wordpiece", 5), ("unigram", 7), ("bpe", -1)])
def test_vocabulary_too_small(refused_before, train_file, kind, size):
    flags = [*MODEL, "--train_tokenizer", kind, "--vocab_size", size, "--train_file", train_file]
    assert f"--vocab_size {size}" in refused_before("tokenize_documents", *flags)


def test_training_a_tokenizer_without_training_text(refused_before, validation_file):
    flags = [*SCRATCH, "--validation_file", validation_file, "--do_eval"]
    message = refused_before("tokenize_documents", *flags)
    assert "--train_tokenizer" in message and "--train_file" in message


def test_append_eos_without_an_end_of_text_token(refused_before, train_file, tokenizer_folder):
    config = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    (tokenizer_folder / "special_tokens_map.json").unlink(missing_ok=True)  # transformers 5 has none
    flags = [*MODEL, "--tokenizer_name", tokenizer_folder, "--train_file", train_file, "--append_eos"]
    message = refused_before("load_model", *flags)
    assert "--append_eos" in message and "leave it out" in message


def test_overridden_vocabulary_too_small(refused_before, train_file):
    flags = [*NEW_TOKENIZER, "--model_type", "gpt2", "--config_overrides", f"{CONFIG},vocab_size=10"]
    message = refused_before("LMTrainer", *flags, "--train_file", train_file)
    assert "--config_overrides vocab_size=10" in message and "leave it out" in message


@pytest.mark.parametrize("kind", ["missing", "empty", "cut off", "not safetensors", "of other shapes"])
def test_unusable_weights(refused_before, checkpoint, train_file, tmp_path, kind):
    folder = checkpoint("gpt2")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if kind == "of other shapes":
        weights.write_bytes(content)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"n_embd": 32}))
    elif kind != "missing":
        weights.write_bytes({"empty": b"", "cut off": content[:-100], "not safetensors": b"weights" * 50}[kind])
    flags = ["--model_name_or_path", folder, "--train_file", train_file, "--do_train"]
    message = refused_before("LMTrainer", *flags)
    assert f"--model_name_or_path {folder}: " in message


@pytest.mark.parametrize("attention", ["nonsense", "flash_attention_2"])
def test_unknown_attention(refused_before, checkpoint, train_file, attention):
    flags = ["--train_file", train_file, "--do_train", "--attn_implementation", attention]
    for model in (["--model_name_or_path", checkpoint("gpt2")], SCRATCH):
        assert "--attn_implementation" in refused_before("LMTrainer", *model, *flags)


# On the command line


def test_on_the_command_line(tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / "run_clm.py", "--trian_file", "x"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == "run_clm.py: error: unknown flag --trian_file (did you mean --train_file?)\n"
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
