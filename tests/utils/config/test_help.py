"""--help is short, --help_all is complete."""

from dataclasses import fields

import pytest

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.config import parser as parser_module
from utils.config.data_arguments import DataArguments
from utils.config.flag_names import PRIMARY_NAMES
from utils.config.help import WIDTH
from utils.config.model_arguments import ModelArguments
from utils.config.training_arguments import LMTrainingArguments


SCRIPTS = [run_clm, run_mlm, run_plm, run_pretraining]


@pytest.fixture(params=SCRIPTS, ids=lambda script: script.__name__)
def helped(request, monkeypatch, capsys):
    """`helped(flag)` is what the script prints for --help or --help_all, and its parser and dataclasses."""
    seen = {}
    short_help, full_help = parser_module.short_help, parser_module.full_help

    def note(function):
        def call(parser, dataclass_types):
            seen.update(parser=parser, dataclass_types=dataclass_types)
            return function(parser, dataclass_types)

        return call

    monkeypatch.setattr(parser_module, "short_help", note(short_help))
    monkeypatch.setattr(parser_module, "full_help", note(full_help))

    def call(*args):
        with pytest.raises(SystemExit) as stopped:
            request.param.main(list(args))
        assert stopped.value.code == 0
        return capsys.readouterr().out, seen["parser"], seen["dataclass_types"]

    return call


def entries(text: str) -> dict[str, str]:
    """From each flag to its lines, joined."""
    found, flag = {}, None
    for line in text.splitlines():
        if line.startswith("  --"):
            flag = line.split()[0]
            found[flag] = ""
        elif not line.startswith("    "):
            flag = None
        if flag is not None:
            found[flag] += " " + line.strip()
    return found


def own_flags(dataclass_types) -> set[str]:
    names = {flag.name for kind in dataclass_types if kind is not LMTrainingArguments for flag in fields(kind)}
    return (names | set(LMTrainingArguments.__annotations__)) - {"folders"}  # of adapters, which is no flag


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_short(helped, flag):
    text, parser, dataclass_types = helped(flag)
    lines = text.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= WIDTH
    assert "--help_all" in lines[-1]
    words = {word.strip(",.") for word in text.split()}
    assert not {f"--{name}" for name in own_flags(dataclass_types)} - words
    assert set(PRIMARY_NAMES) <= words


def test_each_flag_names_its_default(helped):
    """In brackets, or in words where the value alone would not tell."""
    for flag in ("--help", "--help_all"):
        text, parser, _ = helped(flag)
        for name, entry in entries(text).items():
            assert "Default: " in entry or entry.endswith("]"), name
        assert entries(text)["--seed"].endswith("[42]")
        assert entries(text)["--per_device_train_batch_size"].endswith("[8]")
        document_by = parser.get_default("document_by")  # another one in run_pretraining.py
        assert entries(text)["--document_by"].endswith(f"[{document_by}]")


def test_help_of_all_flags(helped):
    text, parser, _ = helped("--help_all")
    words = {word.strip(",.") for word in text.split()}
    options = {option for action in parser._actions for option in action.option_strings}
    spelled_otherwise = {option for option in options if "-" in option[2:] or option.startswith("--no_")}
    spelled_otherwise -= {"--no_cuda"}
    assert not options - spelled_otherwise - words
    for option in spelled_otherwise:  # `--block-size` for --block_size and `--no_flag` for a flag
        name = "--" + option[2:].replace("-", "_")
        assert name in words or "--" + name.removeprefix("--no_") in words
    assert {"Model", "Data", "Training", "Evaluation", "Output", "Other flags of transformers"} <= set(
        text.splitlines()
    )


def test_help_comes_before_everything_else(helped):
    """A flag file that is missing, flags that are wrong."""
    text, *_ = helped("missing.yaml", "--no_such_flag", "--help")
    assert text.startswith("usage: ")


def test_every_own_flag_is_explained():
    for arguments in (ModelArguments, DataArguments, LMTrainingArguments):
        for flag in fields(arguments):
            if arguments is not LMTrainingArguments or flag.name in arguments.__annotations__:
                assert flag.metadata["help"][-1] == "."
