"""Both versions of transformers give the same results, and each loads what the other saved.

Needs both environments, which `make test` and `make test TRANSFORMERS=5` create beside the project. The other version
runs in a process of its own. It tokenizes first, into a cache that this version finds.
"""

import importlib
import json
import os
import re
import subprocess
import tempfile

import pytest
import torch
from conftest import MASKED_SIZES, ROOT, make_lines, make_masked_model, make_model, make_xlnet
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForPreTraining, AutoTokenizer

from utils.compat import TRANSFORMERS_5
from utils.tokens.tokenizer_training import train_tokenizer


OTHER_PYTHON = ROOT / (".venv" if TRANSFORMERS_5 else ".venv-transformers5") / "bin" / "python"
MODELS = [
    ("run_clm", "gpt2"), ("run_clm", "llama"), ("run_mlm", "bert"), ("run_mlm", "roberta"), ("run_mlm", "modernbert"),
    ("run_plm", "xlnet"), ("run_pretraining", "bert"), ("run_pretraining", "albert"),
]  # fmt: skip
TOLERANCE = 1e-5  # of a loss in nats; of a gradient whose largest entries are about 1

pytestmark = pytest.mark.skipif(
    not OTHER_PYTHON.exists(), reason=f"needs the environment of the other version, {OTHER_PYTHON.parents[1].name}"
)


class OtherVersion:
    """A process with the other version of transformers that runs commands of the scripts until it is left."""

    CODE = """
import importlib, json, sys
for line in sys.stdin:
    for script, flags in json.loads(line):
        importlib.import_module(script).main(flags)
    print("done", flush=True)
"""

    def __enter__(self):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [OTHER_PYTHON, "-c", self.CODE], cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        return self

    def run(self, commands: list[tuple[str, list[str]]]) -> None:
        self.process.stdin.write(json.dumps(commands) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line == "done\n":
                return
        self.log.seek(0)
        pytest.fail(self.log.read())

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()
        self.log.close()


def run_here(commands: list[tuple[str, list[str]]]) -> None:
    for script, flags in commands:
        importlib.import_module(script).main(flags)


def make_checkpoints(folder) -> None:
    """A small random model for each of MODELS, with its tokenizer, saved by this version."""
    plain = train_tokenizer("bpe", [make_lines(200)], 300)
    masked = train_tokenizer("bpe", [make_lines(200)], 300, add_special_tokens=True)
    pairs = train_tokenizer("wordpiece", [make_lines(200)], 150)
    sizes = MASKED_SIZES | {"classifier_dropout_prob": 0.0, "pad_token_id": 0, "vocab_size": len(pairs)}
    for script, kind in MODELS:
        if script == "run_clm":
            model, tokenizer = make_model(kind, len(plain)), plain
        elif script == "run_mlm":
            model, tokenizer = make_masked_model(kind, len(masked)), masked
        elif script == "run_plm":
            model, tokenizer = make_xlnet(len(masked)), masked
        else:
            torch.manual_seed(0)
            model = AutoModelForPreTraining.from_config(AutoConfig.for_model(kind, **sizes))
            tokenizer = pairs
        for part in (model, tokenizer):
            part.save_pretrained(folder / f"{script}-{kind}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For each model, both versions train one step and evaluate; then each evaluates what the other saved.

    The checkpoints are in `start`, what a version trained is in `this` and `other`, and the evaluations of that by the
    other of the two are in `this-crossed` and `other-crossed`.
    """
    folder = tmp_path_factory.mktemp("versions")
    for name, seed in (("train", 0), ("validation", 1)):
        documents = ["\n".join(make_lines(5, seed=10 * seed + document)) for document in range(8)]
        (folder / f"{name}.txt").write_text("\n\n".join(documents) + "\n")
    make_checkpoints(folder / "start")

    def commands(start: str, output: str, *flags: str) -> list[tuple[str, list[str]]]:
        texts = ["--train_file", f"{folder}/train.txt", "--validation_file", f"{folder}/validation.txt"]
        common = ["--cache_dir", f"{folder}/cache", "--bf16", "false", "--report_to", "none", "--block_size", "32"]
        common += ["--save_strategy", "no", *texts, *flags]
        return [
            (
                script,
                ["--model_name_or_path", f"{folder}/{start}/{script}-{kind}"]
                + ["--output_dir", f"{folder}/{output}/{script}-{kind}", *common],
            )
            for script, kind in MODELS
        ]

    # One batch and plain gradient descent with a learning rate of 1: the weights change by the gradient.
    step = ["--do_train", "--do_eval", "--max_steps", "1", "--per_device_train_batch_size", "1000", "--optim", "sgd"]
    step += ["--learning_rate", "1", "--lr_scheduler_type", "constant", "--max_grad_norm", "0"]
    with OtherVersion() as other:
        other.run(commands("start", "other", *step))
        run_here(commands("start", "this", *step))
        other.run(commands("this", "this-crossed", "--do_eval"))
        run_here(commands("other", "other-crossed", "--do_eval"))
    return folder


def results_of(folder, script: str, kind: str) -> dict:
    results = json.loads((folder / f"{script}-{kind}" / "all_results.json").read_text())
    return {key: value for key, value in results.items() if not re.search("runtime|per_second|memory", key)}


@pytest.mark.parametrize(("script", "kind"), MODELS)
def test_results_are_equal(folder, script, kind):
    """All but speeds: losses, accuracies, numbers of tokens, bytes, examples and targets."""
    this, other = (results_of(folder / version, script, kind) for version in ("this", "other"))
    assert this == pytest.approx(other, rel=TOLERANCE)


@pytest.mark.parametrize(("script", "kind"), MODELS)
def test_gradients_are_equal(folder, script, kind):
    start, this, other = (
        load_file(folder / saved_by / f"{script}-{kind}" / "model.safetensors")
        for saved_by in ("start", "this", "other")
    )
    assert start.keys() == this.keys() == other.keys()
    largest = 0.0
    for name, weight in start.items():
        gradient = (weight - this[name]).double()
        torch.testing.assert_close(gradient, (weight - other[name]).double(), rtol=0, atol=TOLERANCE)
        largest = max(largest, gradient.abs().max().item())
    assert largest > 0.01


@pytest.mark.parametrize(("script", "kind"), MODELS)
@pytest.mark.parametrize("saved_by", ["this", "other"])
def test_a_folder_of_one_version_loads_in_the_other(folder, script, kind, saved_by):
    expected = results_of(folder / saved_by, script, kind)
    results = results_of(folder / f"{saved_by}-crossed", script, kind)
    assert "eval_loss" in results
    assert results == pytest.approx({key: expected[key] for key in results}, rel=TOLERANCE)


@pytest.mark.parametrize(("script", "kind"), MODELS)
def test_the_tokenizer_is_the_same(folder, script, kind):
    """Plain AutoTokenizer loads what either version saved: vocabulary, special tokens, template and settings."""
    start, this, other = (
        AutoTokenizer.from_pretrained(folder / saved_by / f"{script}-{kind}")
        for saved_by in ("start", "this", "other")
    )
    mask = start.mask_token or "the"
    texts = ["The cat  sat.", f"A new\nline, é 日本 {mask} of"], ["two", f"birds{mask} "]
    for tokenizer in (this, other):
        assert tokenizer.get_vocab() == start.get_vocab()
        assert tokenizer(*texts) == start(*texts)
        assert tokenizer(*texts, add_special_tokens=False) == start(*texts, add_special_tokens=False)
        assert tokenizer.special_tokens_map == start.special_tokens_map
        assert tokenizer.model_input_names == start.model_input_names


@pytest.mark.parametrize(("script", "kind"), MODELS)
def test_the_cache_of_the_other_version_changes_nothing(folder, script, kind, tmp_path):
    """With a cache that the other version built, the results are those with an empty cache."""
    flags = ["--model_name_or_path", f"{folder}/start/{script}-{kind}", "--validation_file", folder / "validation.txt"]
    flags += ["--bf16", "false", "--report_to", "none", "--block_size", "32", "--do_eval"]
    for name, cache in (("shared", folder / "cache"), ("empty", tmp_path / "cache")):
        output = ["--cache_dir", cache, "--output_dir", tmp_path / name / f"{script}-{kind}"]
        run_here([(script, [str(word) for word in (*flags, *output)])])
    shared, empty = (results_of(tmp_path / name, script, kind) for name in ("shared", "empty"))
    assert shared == empty
