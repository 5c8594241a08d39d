"""The README's commands are made of flags that exist, and its file map is the tree."""

import re
import shlex

import pytest
import yaml
from conftest import ROOT

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.compat import NO_ADAPTERS_REASON
from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.config.parser import parse_arguments
from utils.config.training_arguments import LMTrainingArguments


README = (ROOT / "README.md").read_text()
OWN_ARGUMENTS = {
    "run_clm.py": run_clm.CausalLMArguments,
    "run_mlm.py": run_mlm.MaskedLMArguments,
    "run_plm.py": run_plm.PermutationLMArguments,
    "run_pretraining.py": run_pretraining.PretrainingArguments,
}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if "run_" in line]


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    script = next(index for index, word in enumerate(words) if word.endswith(".py"))
    dataclasses = (ModelArguments, DataArguments, OWN_ARGUMENTS[words[script]], AdapterArguments, LMTrainingArguments)
    if NO_ADAPTERS_REASON and {"--train_adapter", "--load_adapter"} & set(words):
        pytest.skip(NO_ADAPTERS_REASON)
    *_, run_args = parse_arguments(*dataclasses, args=words[script + 1 :])
    assert run_args


def test_there_are_commands():
    assert len(commands()) >= 6


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_parse(recipe):
    """And their header names the command that runs them."""
    script = re.search(r"(run_\w+\.py) recipes/" + recipe.name, recipe.read_text()).group(1)
    dataclasses = (ModelArguments, DataArguments, OWN_ARGUMENTS[script], AdapterArguments, LMTrainingArguments)
    *_, run_args = parse_arguments(*dataclasses, args=[str(recipe)])
    assert set(run_args) == set(yaml.safe_load(recipe.read_text()))


def test_file_map_is_complete():
    listed = set(re.findall(r"^  (\w+\.py) ", README, re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "utils").glob("*.py")} - {"__init__.py"}
    for script in ROOT.glob("run_*.py"):
        assert f"\n{script.name} " in README
