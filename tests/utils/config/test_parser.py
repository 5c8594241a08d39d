"""The command line: flags, a file of flags, both; what is refused; and how many processes are started."""

import json
import sys

import pytest
import torch
import yaml
from command_line import NEEDED, SCALARS, as_flags, parse, parse_needed

from run_clm import CausalLMArguments
from utils.config import parser
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.config.parser import parse_arguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError


@pytest.fixture
def flag_file(tmp_path):
    """Writes values into a file of flags in the format of its suffix."""

    def write(values: dict, suffix: str):
        path = tmp_path / f"run{suffix}"
        path.write_text(json.dumps(values) if suffix == ".json" else yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def cpu_with_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


# Flags and files


def test_flags():
    values = parse(*as_flags(SCALARS))
    assert {key: values[key] for key in SCALARS} == SCALARS


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_file_says_the_same_as_flags(flag_file, suffix):
    values = parse(flag_file(SCALARS, suffix))
    assert {key: values[key] for key in SCALARS} == SCALARS
    assert values["run_args"] == parse(*as_flags(SCALARS))["run_args"]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_flags_win_over_the_file(flag_file, suffix):
    values = parse(flag_file(SCALARS, suffix), "--block_size", 32, "--append_eos", "false", "--train_file", "c.txt")
    changed = {"block_size": 32, "append_eos": False, "train_file": ["c.txt"]}
    assert {key: values[key] for key in SCALARS} == SCALARS | changed


def test_null_in_a_file_leaves_the_default(flag_file):
    values = parse(flag_file(NEEDED | {"block_size": None, "metric": None}, ".yaml"))
    assert values["block_size"] is None and values["metric"] is None
    assert values["run_args"] == NEEDED


def test_values_in_a_file_are_taken_literally(flag_file):
    odd = {"output_dir": "--out=x y", "hub_model_id": "", "text_column": "naïve: 'text' #1"}
    values = parse(flag_file(NEEDED | odd, ".yaml"))
    assert {key: values[key] for key in odd} == odd


def test_dict_in_a_file(flag_file):
    given = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.00001}}
    assert parse(flag_file(NEEDED | given, ".yaml"))["lr_scheduler_kwargs"] == {"min_lr": 0.00001}


def test_one_file_need_not_be_a_list(flag_file):
    assert parse(flag_file(NEEDED | {"train_file": "c.txt"}, ".yaml"))["train_file"] == ["c.txt"]


def test_words_of_the_command_line_are_the_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run_clm.py", *as_flags(SCALARS)])
    model_args, *_ = parse_arguments(
        ModelArguments, DataArguments, CausalLMArguments, LMTrainingArguments
    )  # no args: sys.argv
    assert model_args.config_overrides == SCALARS["config_overrides"]


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--bf16", "false"], "bf16", False),
        (["--bf16", "true"], "bf16", True),
        (["--bf16"], "bf16", True),
        (["--append_eos"], "append_eos", True),
        (["--append_eos", "false"], "append_eos", False),
        (["--keep_linebreaks", "false"], "keep_linebreaks", False),
        (["--no_keep_linebreaks"], "keep_linebreaks", False),
        (["--no-keep-linebreaks"], "keep_linebreaks", False),
        (["--use_fast_tokenizer", "False"], "use_fast_tokenizer", False),
        (["--max_seq_length", "32"], "block_size", 32),
        (["--block-size", "32"], "block_size", 32),
        (["--torch_dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--text_column_name", "body"], "text_column", "body"),
        (["--config_overrides=n_embd=8,n_layer=1"], "config_overrides", "n_embd=8,n_layer=1"),
    ],
)
def test_spellings(cpu_with_bf16, flags, name, value):
    values = parse_needed(*flags)
    assert values[name] == value and type(values[name]) is type(value)
    assert values["run_args"] == NEEDED | {name: value}


def test_bare_flag_takes_no_word_of_the_next_one(cpu_with_bf16):
    values = parse_needed("--bf16", "--block_size", "16")
    assert values["bf16"] is True and values["block_size"] == 16


def test_run_args_hold_what_was_given_even_if_it_is_the_default(flag_file):
    given = {"seed": 42, "keep_linebreaks": True}
    assert parse(flag_file(NEEDED | given, ".json"))["run_args"] == NEEDED | given
    assert parse_needed("--seed", "42", "--keep_linebreaks", "true")["run_args"] == NEEDED | given


def test_defaults_of_a_script_are_not_among_the_given_flags():
    _, data_args, run_args = parse_arguments(
        ModelArguments,
        DataArguments,
        args=["--model_type", "gpt2", "--tokenizer_name", "gpt2", "--train_file", "a.txt"],
        defaults={"document_by": "blank_line"},
    )
    assert data_args.document_by == "blank_line"
    assert run_args == {"model_type": "gpt2", "tokenizer_name": "gpt2", "train_file": ["a.txt"]}


def test_run_args_repeat_the_run(flag_file):
    first = parse(*as_flags(SCALARS))
    again = parse(flag_file(first["run_args"], ".yaml"))
    unlike = {"logging_dir", "run_args", "start_time", "distributed_state", "deepspeed_plugin", "accelerator_config"}
    assert {key: value for key, value in again.items() if key not in unlike} == {
        key: value for key, value in first.items() if key not in unlike
    }
    assert again["run_args"] == first["run_args"]


def test_run_args_is_no_flag():
    with pytest.raises(UsageError, match="unknown flag --run_args"):
        parse_needed("--run_args", "{}")


# Refusals


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--trian_file", "--train_file"),
        ("--batch_size", None),
        ("--per_device_train_batchsize", "--per_device_train_batch_size"),
        ("--num_epochs", "--num_train_epochs"),
        ("--lerning_rate=0.1", "--learning_rate"),
        ("--train_fil", "--train_file"),
    ],
)
def test_unknown_flag_names_the_nearest(flag, meant):
    with pytest.raises(UsageError, match=f"^unknown flag {flag}") as refusal:
        parse_needed(flag, "1")
    if meant:
        assert f"did you mean {meant}?" in str(refusal.value)


def test_flag_like_no_other_points_to_the_help():
    with pytest.raises(UsageError, match=r"unknown flag --zzzzqqqq .*--help"):
        parse_needed("--zzzzqqqq")


@pytest.mark.parametrize("abbreviation", ["--block", "--train_fil", "--output", "--learning", "--bf"])
def test_no_abbreviations(abbreviation):
    with pytest.raises(UsageError, match=f"unknown flag {abbreviation}"):
        parse_needed(abbreviation, "1")


def test_stray_word():
    with pytest.raises(UsageError, match="stray"):
        parse("stray", *as_flags(NEEDED))


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_unknown_key_names_file_and_key(flag_file, suffix):
    path = flag_file(NEEDED | {"blocksize": 8}, suffix)
    with pytest.raises(UsageError) as refusal:
        parse(path)
    assert str(path) in str(refusal.value) and "blocksize" in str(refusal.value)
    assert "did you mean --block_size?" in str(refusal.value)


@pytest.mark.parametrize("key", ["run_args", "help", "h"])
def test_key_that_is_no_flag_of_the_run(flag_file, key):
    with pytest.raises(UsageError, match=key):
        parse(flag_file(NEEDED | {key: True}, ".yaml"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "model_type: gpt2\n  block_size: [1"),
        ("a.yaml", "train_file: 'a.txt\n"),
        ("a.yml", "\tblock_size: 8"),
        ("a.json", '{"block_size": 8,}'),
        ("a.json", ""),
        ("a.yaml", ""),
        ("a.yaml", "just a sentence"),
        ("a.json", '["block_size", 8]'),
        ("a.yaml", "- block_size: 8"),
    ],
)
def test_malformed_file_of_flags(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError) as refusal:
        parse(path)
    assert str(path) in str(refusal.value)


def test_file_of_flags_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("text_column: naïve".encode("latin-1"))
    with pytest.raises(UsageError, match="latin.yaml"):
        parse(path)


@pytest.mark.parametrize("name", ["missing.yaml", "folder.json"])
def test_file_of_flags_that_cannot_be_read(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match=name):
        parse(tmp_path / name)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("block_size", "many"),
        ("block_size", "1.5"),
        ("learning_rate", "fast"),
        ("append_eos", "perhaps"),
        ("bf16", "perhaps"),
        ("dtype", "int8"),
        ("document_by", "page"),
        ("train_tokenizer", "morse"),
        ("lr_scheduler_type", "sawtooth"),
        ("eval_strategy", "sometimes"),
        ("optim", "magic"),
        ("warmup_ratio", "2"),
        ("lr_scheduler_kwargs", "{bad"),
        ("fsdp_config", "missing.json"),
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_value_of_the_wrong_kind(flag_file, flag, value, from_file):
    words = [flag_file(NEEDED | {flag: value}, ".yaml")] if from_file else [*as_flags(NEEDED), f"--{flag}", value]
    with pytest.raises(UsageError) as refusal:
        parse(*words)
    message = str(refusal.value)
    assert flag in message or value in message


def test_message_has_one_name_of_the_flag():
    with pytest.raises(UsageError, match="^--block_size: invalid int value: 'many'$"):
        parse_needed("--max_seq_length", "many")


@pytest.mark.parametrize("flag", ["--output_dir", "--train_file", "--block_size"])
def test_flag_without_its_value(flag):
    with pytest.raises(UsageError, match=flag):
        parse(*as_flags(NEEDED | {"seed": 1}), flag)


# How many processes


class Launched(Exception):
    """Raised in the place of starting processes."""


@pytest.fixture
def launched(monkeypatch):
    """`launched(gpus, *flags)` is the number of processes that the command line starts; 1 if it goes on itself."""

    def call(gpus: int, *flags, **environment) -> int:
        def launch(command, num_processes):
            raise Launched(command, num_processes)

        for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        words = ["run_clm.py", "--model_name_or_path", "gpt2", "--train_file", "train.txt", *flags]
        monkeypatch.setattr(parser, "launch", launch)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(LMTrainingArguments, "__post_init__", lambda self: None)
        try:
            parse_arguments(ModelArguments, DataArguments, LMTrainingArguments)
        except Launched as started:
            command, num_processes = started.args
            assert command == words
            return num_processes
        return 1

    return call


@pytest.mark.parametrize(
    ("gpus", "flags", "expected"),
    [
        (0, (), 1),
        (0, ("--num_processes", "3"), 3),
        (1, (), 1),
        (8, (), 8),
        (8, ("--num_processes", "2"), 2),
        (8, ("--num_processes=1",), 1),
        (8, ("--use_cpu",), 1),
        (8, ("--use_cpu", "false"), 8),
        (8, ("--use_cpu", "--num_processes", "9"), 9),
        (8, ("--preprocess_only",), 1),
    ],
)
def test_a_process_for_each_gpu(launched, gpus, flags, expected):
    assert launched(gpus, *flags) == expected


def test_what_a_launcher_started_starts_no_others(launched):
    environment = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert launched(8, **environment) == 1
    assert launched(8, "--num_processes", "2", **environment) == 1
    with pytest.raises(UsageError, match="--num_processes 4, but the launcher has started 2"):
        launched(8, "--num_processes", "4", **environment)


@pytest.mark.parametrize(
    ("gpus", "flags", "message"),
    [
        (0, ("--num_processes", "0"), "--num_processes 0: give 1 or more"),
        (2, ("--num_processes", "3"), "--num_processes 3: there are 2 GPUs here"),
        (0, ("--tpu", "my-tpu"), "--tpu was TensorFlow's: on a TPU machine"),
    ],
)
def test_processes_that_cannot_be(launched, gpus, flags, message):
    with pytest.raises(UsageError, match=message):
        launched(gpus, *flags)


def test_a_call_of_main_starts_none():
    with pytest.raises(UsageError, match="works on the command line"):
        parser._processes_to_start({"num_processes": 2}, is_script=False)
    assert parser._processes_to_start({}, is_script=False) == 1
