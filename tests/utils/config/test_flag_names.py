"""Error messages name a flag as the user typed it."""

import json
from dataclasses import fields

import pytest
import yaml

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.flag_names import COMMON_NAMES, PRIMARY_NAMES, with_typed_names
from utils.config.model_arguments import ModelArguments
from utils.config.training_arguments import LMTrainingArguments


SCRIPTS = {"clm": run_clm, "mlm": run_mlm, "plm": run_plm, "pretraining": run_pretraining}


def test_aliases():
    assert PRIMARY_NAMES == {
        "--max_seq_length": "--block_size",
        "--text_column_name": "--text_column",
        "--torch_dtype": "--dtype",
    }


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "--block_size 1, --text_column_a and --max_seq_length"),
        (["--block_size", "1"], "--block_size 1, --text_column_a and --block_size"),
        (["--max_seq_length", "1"], "--max_seq_length 1, --text_column_a and --max_seq_length"),
        (["--max_seq_length=1"], "--max_seq_length 1, --text_column_a and --max_seq_length"),
        (["--max-seq-length", "1"], "--max-seq-length 1, --text_column_a and --max-seq-length"),
        (["--block-size", "1"], "--block-size 1, --text_column_a and --block-size"),
        (["--text_column_name", "t"], "--block_size 1, --text_column_a and --max_seq_length"),
        (["--max_seq_length", "1", "--block_size", "2"], "--block_size 1, --text_column_a and --block_size"),
    ],
)
def test_names_in_a_message(args, expected):
    assert with_typed_names("--block_size 1, --text_column_a and --max_seq_length", args) == expected


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_names_in_a_file_of_flags(tmp_path, suffix):
    path = tmp_path / f"flags{suffix}"
    values = {"torch_dtype": "int8", "max_seq_length": 1}
    path.write_text(json.dumps(values) if suffix == ".json" else yaml.safe_dump(values))
    assert with_typed_names("--dtype, --block_size", [str(path)]) == "--torch_dtype, --max_seq_length"
    assert with_typed_names("--dtype, --block_size", [str(path), "--dtype", "x"]) == "--dtype, --max_seq_length"


def test_malformed_file_changes_no_message(tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text("a: [")
    assert with_typed_names(f"{path}: not valid YAML", [str(path)]) == f"{path}: not valid YAML"


def test_common_names_lead_to_flags_and_are_none():
    """Each of a flag that some script has; none is a flag itself, or leads to two."""
    arguments = (ModelArguments, DataArguments, LMTrainingArguments, AdapterArguments, run_mlm.MaskedLMArguments)
    flags = {flag.name for group in arguments for flag in fields(group)} | {alias[2:] for alias in PRIMARY_NAMES}
    names = [name for names in COMMON_NAMES.values() for name in names.split()]
    assert set(COMMON_NAMES) <= flags
    assert not set(names) & flags
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("flag", "value", "other", "message"),
    [
        ("block_size", "many", "few", "--block_size: invalid int value:"),
        ("max_seq_length", 1, 0, "--max_seq_length "),
        ("bf16", "perhaps", "never", "--bf16: Truthy value expected"),
        ("optim", "magic", "luck", "--optim "),
        ("warmup_ratio", 2, 3, "--warmup_ratio "),
        ("lr_scheduler_kwargs", "{bad", "{worse", "--lr_scheduler_kwargs "),
        ("train_file", ["missing.txt"], "gone.txt", "--train_file "),
    ],
)
def test_an_error_names_the_file_that_gives_the_value(tmp_path, checkpoint, capsys, flag, value, other, message):
    """But not if the command line overrides it."""
    values = {"model_name_or_path": str(checkpoint("gpt2")), "train_file": "t.txt", "output_dir": str(tmp_path / "o")}
    path = tmp_path / "flags.yaml"
    path.write_text(yaml.safe_dump(values | {flag: value}))
    for more in ([], [f"--{flag}", str(other)]):
        with pytest.raises(SystemExit):
            run_clm.main([str(path), *more])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert message in line
        assert line.startswith(f"run_clm.py: error: {path}: ") == (not more)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ["--block_size", "--max_seq_length"])
def test_each_script_names_what_was_typed(refused, script, name):
    model = ["--model_type", "gpt2", "--tokenizer_name", "gpt2", "--train_file", "t.txt"]
    assert f"error: {name} 1 leaves" in refused(*model, name, 1, script=SCRIPTS[script])


@pytest.mark.parametrize("name", ["--block_size", "--max_seq_length"])
def test_a_message_of_a_script_names_what_was_typed(refused, name):
    model = ["--model_type", "bert", "--tokenizer_name", "bert-base-uncased", "--train_file", "t.txt"]
    assert f"error: {name} 5 leaves no room for two texts" in refused(*model, name, 5, script=run_pretraining)


@pytest.mark.parametrize("name", ["--dtype", "--torch_dtype"])
def test_argparse_names_what_was_typed(refused, name):
    assert f"error: {name}: invalid choice: 'int8'" in refused(name, "int8")
