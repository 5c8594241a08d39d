"""What the four scripts have in common: the files of a run, its resumption, and that its layout changes nothing."""

import contextlib
import io
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import ROOT, needs_adapters, run_python
from huggingface_hub import ModelCard
from processes import Forked, killed_after_checkpoint
from safetensors.torch import load_file
from scripts import ADAPTER, FROM_SCRATCH, SCRIPTS, flags_of, save_checkpoints, write_documents
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.compat import TRANSFORMERS_5
from utils.training.trainer import LMTrainer


every_script = pytest.mark.parametrize("name", SCRIPTS)


@pytest.fixture
def train_file(tmp_path) -> Path:
    return write_documents(tmp_path / "train.txt", 60)


@pytest.fixture
def validation_file(tmp_path) -> Path:
    return write_documents(tmp_path / "validation.txt", 30, seed=1)


def results_of(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    adapter = folder / "adapter.safetensors"
    return load_file(adapter if adapter.is_file() else folder / "model.safetensors")


def assert_same_weights(folder: Path, expected: Path, tolerance: float = 0) -> None:
    weights, expected_weights = weights_of(folder), weights_of(expected)
    assert weights.keys() == expected_weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[key], rtol=0, atol=tolerance)


def assert_same_figures(results: dict, expected: dict, tolerance: float = 0) -> None:
    """All figures but the speeds; counts and accuracies are equal in any case."""
    assert results.keys() == expected.keys()
    for key, value in expected.items():
        if key.endswith(("loss", "perplexity", "bits_per_byte")):
            assert results[key] == pytest.approx(value, rel=tolerance, abs=0), key
        elif not re.search("runtime|per_second|memory", key):
            assert results[key] == value, key


# Files and figures


@dataclass
class Training:
    """A training of a new model that is long enough to learn something, and what must come of it."""

    flags: list  # of the model, the text and the training
    objective: list  # flags that an evaluation of the saved model needs, too
    drop: float  # of the loss that is followed, from the first evaluation to the last
    accuracy: float  # of the last evaluation, at least
    metrics: set[str]  # in eval_results.json, besides eval_loss, perplexity, eval_samples, eval_runtime, ...
    pipeline_tag: str
    card: list[str]  # in README.md
    printed: list[str]  # by its code, as regular expressions
    num_lines: int = 60  # of the training text
    followed: str = "eval_loss"
    train_metrics: frozenset[str] = frozenset()


SMALL_BERT = "num_hidden_layers=1,hidden_size=32,intermediate_size=32,num_attention_heads=2,hidden_dropout_prob=0,"
SMALL_BERT += "attention_probs_dropout_prob=0"
TRAININGS = {
    "clm": Training(
        flags=[*FROM_SCRATCH["clm"], "--num_train_epochs", 10, "--per_device_train_batch_size", 2],
        objective=["--block_size", 32, "--append_eos"],
        drop=1,
        accuracy=0.3,
        metrics={"bits_per_byte", "eval_bits_per_byte", "eval_accuracy", "eval_tokens", "eval_bytes"},
        pipeline_tag="text-generation",
        card=["each token given those before it in its block"],
        printed=["^The"],
    ),
    "mlm": Training(
        flags=[
            "--model_type", "roberta", "--train_tokenizer", "bpe", "--vocab_size", 300,
            "--config_overrides", SMALL_BERT, "--num_train_epochs", 40, "--per_device_train_batch_size", 4,
        ],
        objective=["--max_seq_length", 64, "--whole_word_mask", "--mlm_probability", 0.2],
        drop=0.3,
        accuracy=0.05,
        metrics={"eval_accuracy", "eval_masked_tokens"},
        pipeline_tag="fill-mask",
        card=["| mlm_probability | 0.2 |", "| whole_word_mask | True |"],
        printed=[r"^(.+\n){5}"],
    ),
    "plm": Training(
        flags=[
            "--model_type", "xlnet", "--train_tokenizer", "unigram", "--vocab_size", 100, "--config_overrides",
            "n_layer=2,d_model=32,n_head=4,d_inner=64,dropout=0,initializer_range=0.1", "--num_train_epochs", 25,
            "--per_device_train_batch_size", 8,
        ],
        objective=["--max_seq_length", 63, "--plm_probability", 0.2],
        drop=0.3,
        accuracy=0.15,
        metrics={"eval_accuracy", "eval_predicted_tokens"},
        pipeline_tag="text-generation",
        card=["before it in a random order; the perplexity is its exponential", "| plm_probability | 0.2 |"],
        printed=["^Once upon a time"],
        num_lines=300,
    ),
    "pretraining": Training(
        flags=[
            "--model_type", "bert", "--train_tokenizer", "wordpiece", "--vocab_size", 100,
            "--config_overrides", SMALL_BERT, "--num_train_epochs", 40, "--per_device_train_batch_size", 8,
        ],
        objective=[
            "--max_seq_length", 48, "--mlm_probability", 0.2, "--segment_by", "sentence", "--nsp_probability", 0.9,
        ],
        drop=0.3,
        accuracy=0.03,
        num_lines=120,
        followed="eval_mlm_loss",
        metrics={
            *("mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "eval_masked_tokens"),
            *("eval_mlm_loss", "eval_mlm_accuracy", "eval_nsp_loss", "eval_nsp_accuracy"),
        },
        train_metrics=frozenset({"train_mlm_loss", "train_nsp_loss"}),
        pipeline_tag="fill-mask",
        card=[
            "| sentence_task | nsp |", "| segment_by | sentence |", "| mlm_probability | 0.2 |",
            "the perplexity is that of the masked tokens alone",
        ],
        printed=["^the masked token: ", r"text B follows text A: 0\.\d+$"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """`trained / "clm.v1"` and so on are the folders of runs that trained; `printed.txt` in each is their stdout."""
    folder = tmp_path_factory.mktemp("trained")
    for name, training in TRAININGS.items():
        write_documents(folder / f"{name}-train.txt", training.num_lines, lines_per_document=6)
        write_documents(folder / f"{name}-validation.txt", 30, seed=1, lines_per_document=6)
        common = ["--train_file", folder / f"{name}-train.txt", "--learning_rate", "1e-2", "--bf16", "false"]
        common += ["--eval_strategy", "epoch", "--save_strategy", "epoch", "--report_to", "tensorboard"]
        common += ["--disable_tqdm", "true", "--hub_token", "hf_secret", "--token", "hf_mine"]
        common += ["--output_dir", folder / f"{name}.v1"]
        flags = [*training.flags, *evaluation_flags(folder, name), "--do_train", *common]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            returned = SCRIPTS[name].main([str(flag) for flag in flags])
        (folder / f"{name}-returned.json").write_text(json.dumps(returned))
        (folder / f"{name}-printed.txt").write_text(printed.getvalue())
    return folder


def evaluation_flags(folder: Path, name: str) -> list[str]:
    flags = ["--validation_file", folder / f"{name}-validation.txt", "--do_eval", "--cache_dir", folder / "cache"]
    return [str(flag) for flag in [*TRAININGS[name].objective, *flags]]


def history_of(folder: Path, key: str) -> list[dict]:
    """The lines of the log that have the key."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log for log in history if key in log]


@every_script
def test_the_loss_falls(trained, name):
    training, folder = TRAININGS[name], trained / f"{name}.v1"
    evaluations = history_of(folder, "eval_loss")
    assert len(evaluations) >= 10
    assert evaluations[-1][training.followed] < evaluations[0][training.followed] - training.drop
    nll = "eval_mlm_loss" if name == "pretraining" else "eval_loss"
    assert all(log["eval_perplexity"] == math.exp(log[nll]) for log in evaluations)
    steps = history_of(folder, "loss")
    expected = {"learning_rate", "grad_norm", "tokens_per_second", "eta_seconds", *training.train_metrics}
    assert all(expected <= set(log) for log in steps)
    state = json.loads((folder / "trainer_state.json").read_text())
    every = math.ceil(state["global_step"] / 100)  # the default: about 100 lines
    assert [log["step"] for log in steps] == list(range(every, state["global_step"] + 1, every))
    if name == "pretraining":  # the share of the labels, at the least: 0.325; that of a coin is 0.693
        assert sum(log["train_nsp_loss"] for log in steps[-20:]) / 20 < 0.5
    assert evaluations[-1]["eval_mlm_accuracy" if name == "pretraining" else "eval_accuracy"] > training.accuracy


@every_script
def test_figures_are_printed_and_saved(trained, name):
    training, folder = TRAININGS[name], trained / f"{name}.v1"
    results = results_of(folder)
    assert json.loads((trained / f"{name}-returned.json").read_text()) == results
    printed = (trained / f"{name}-printed.txt").read_text()
    assert f"perplexity  {results['perplexity']:.3f}\n" in printed
    assert f"results  {folder}\n" in printed
    if name == "pretraining":
        assert f"nsp accuracy  {results['nsp_accuracy']:.4f}" in printed
    train_results, eval_results = (
        json.loads((folder / f"{part}_results.json").read_text()) for part in ("train", "eval")
    )
    run_figures = {key: results[key] for key in ("total_runtime", "peak_memory_mb")}
    assert results == train_results | eval_results | run_figures
    assert results["total_runtime"] > train_results["train_runtime"] + eval_results["eval_runtime"]
    assert 100 < results["peak_memory_mb"] < 10_000
    assert train_results["final_train_loss"] == history_of(folder, "loss")[-1]["loss"]
    for label in ("train loss", "final train loss", "eval loss", "total runtime", "peak memory"):
        assert len(re.findall(rf"^ *{label}  [\d.:,]+( MB)?$", printed, re.MULTILINE)) == 1, label
    assert set(train_results) == training.train_metrics | {
        "train_loss", "final_train_loss", "train_samples", "train_tokens", "train_runtime", "train_tokens_per_second",
        "epoch",
    }  # fmt: skip
    assert set(eval_results) - {"epoch"} == training.metrics | {
        "eval_loss", "perplexity", "eval_perplexity", "eval_samples", "eval_runtime", "eval_tokens_per_second",
    }  # fmt: skip
    assert train_results["train_tokens_per_second"] == pytest.approx(
        train_results["train_tokens"] / train_results["train_runtime"], rel=0.01
    )


@every_script
def test_files_are_complete(trained, name):
    training, folder = TRAININGS[name], trained / f"{name}.v1"
    files = {path.name for path in folder.iterdir()}
    assert files >= {
        "model.safetensors", "config.json", "tokenizer.json", "trainer_state.json", "loss.png", "README.md",
        "run_args.yaml", "train_results.json", "eval_results.json", "all_results.json", "runs",
    }  # fmt: skip
    assert not list(folder.rglob("training_args.bin"))
    assert sum(file.startswith("checkpoint-") for file in files) == 2
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    for path in folder.rglob("*"):
        assert not path.is_file() or not re.search(b"hf_secret|hf_mine", path.read_bytes()), path

    (events,) = (folder / "runs").glob("*")
    scalars = EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert {"train/loss", "eval/loss", "train/grad_norm", "train/tokens_per_second"} <= set(scalars)
    assert {key.replace("eval_", "eval/", 1) for key in training.metrics if key.startswith("eval_")} <= set(scalars)
    assert "eval/perplexity" in scalars
    assert not [key for key in scalars if re.search("perplexity|bits_per_byte|accuracy", key) and "train/" in key]
    assert ("train/train_mlm_loss" in scalars) == (name == "pretraining")

    card, results = ModelCard.load(folder / "README.md"), results_of(folder)
    assert card.data.pipeline_tag == training.pipeline_tag
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    metric = "nsp_accuracy" if name == "pretraining" else "perplexity"
    assert metrics[metric] == results[metric]
    for part in training.card:
        assert part in card.content
    if name == "plm":
        assert json.loads((folder / "config.json").read_text())["d_head"] == 8


FRESH_PROCESS = """
import contextlib, importlib, io, json, os, sys

os.chdir(os.path.dirname(sys.argv[1]))
printed = {}
for name, (code, flags) in json.load(open(sys.argv[1])).items():
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, {})
    printed[name] = output.getvalue()
    importlib.import_module(f"run_{name}").main(flags)
json.dump(printed, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def fresh_process(trained) -> dict[str, str]:
    """What the code in each README.md prints, by script; then each saved model is evaluated, into `NAME-again`."""
    jobs = {}
    for name in TRAININGS:
        code = re.search(r"```python\n(.*?)```", (trained / f"{name}.v1" / "README.md").read_text(), re.DOTALL)[1]
        flags = ["--model_name_or_path", str(trained / f"{name}.v1"), "--output_dir", str(trained / f"{name}-again")]
        jobs[name] = code, [*flags, *evaluation_flags(trained, name), "--bf16", "false"]
    (trained / "jobs.json").write_text(json.dumps(jobs))
    run_python("-c", FRESH_PROCESS, trained / "jobs.json", trained / "printed.json", PYTHONPATH=str(ROOT))
    return json.loads((trained / "printed.json").read_text())


@every_script
def test_the_code_of_the_card_runs_in_a_fresh_process(fresh_process, name):
    for part in TRAININGS[name].printed:
        assert re.search(part, fresh_process[name], re.MULTILINE), fresh_process[name]


@every_script
def test_a_fresh_process_evaluates_to_the_same_figures(fresh_process, trained, name):
    again, expected = (
        json.loads((trained / folder / "eval_results.json").read_text()) for folder in (f"{name}-again", f"{name}.v1")
    )
    assert_same_figures(again, {key: value for key, value in expected.items() if key != "epoch"}, 1e-6)


# Repeated and resumed


@every_script
def test_run_args_repeat_the_run(name, train_file, validation_file, run, tmp_path):
    flags = ["--train_file", train_file, "--validation_file", validation_file, "--block_size", 32, "--max_steps", 5]
    flags += ["--learning_rate", "1e-2", "--overwrite_output_dir"]
    first = run(tmp_path / "out", *FROM_SCRATCH[name], *flags, script=SCRIPTS[name])
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "model.safetensors")
    SCRIPTS[name].main([str(tmp_path / "out" / "run_args.yaml")])
    assert_same_figures(results_of(tmp_path / "out"), first)
    assert_same_weights(tmp_path / "out", tmp_path)


@every_script
def test_resumed_run_ends_as_the_uninterrupted_one(name, train_file, validation_file, run, tmp_path, monkeypatch):
    """Ended in the middle of the second of three epochs, with dropout; run_pretraining also with LAMB's state.

    It continues with the examples that are left, masked as they would have been. When nothing is left to train, the
    same command gives the same results.
    """
    seen = []
    compute_loss = LMTrainer.compute_loss

    def record(trainer, model, inputs, *args, **kwargs):
        seen.extend((int(trainer.state.epoch), *row) for row in inputs["input_ids"].tolist())
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LMTrainer, "compute_loss", record)
    flags = [*FROM_SCRATCH[name], "--train_file", train_file, "--validation_file", validation_file]
    flags += ["--block_size", 32, "--max_train_samples", 20, "--per_device_train_batch_size", 4]
    flags += ["--num_train_epochs", 3, "--learning_rate", "1e-2", "--save_strategy", "steps", "--save_steps", 1]
    flags += ["--logging_steps", 3, "--do_train", "--do_eval"]
    flags += ["--optim", "lamb"] if name == "pretraining" else []
    whole = run(tmp_path / "whole", *flags, script=SCRIPTS[name])
    assert whole["train_samples"] == 60
    assert [epoch for epoch, *_ in seen] == [0] * 20 + [1] * 20 + [2] * 20
    left = seen[-32:]
    with killed_after_checkpoint(SCRIPTS[name], 7):
        run(tmp_path / "resumed", *flags, script=SCRIPTS[name])
    seen.clear()
    resumed = run(tmp_path / "resumed", *flags, script=SCRIPTS[name])
    assert seen == left
    assert_same_weights(tmp_path / "resumed", tmp_path / "whole")
    assert_same_figures(resumed, whole, 1e-9)
    assert resumed["eval_loss"] == whole["eval_loss"]
    again = run(tmp_path / "resumed", *flags, script=SCRIPTS[name])
    assert_same_figures(again, resumed)


# Batches, workers and processes

CASES = {
    "clm": ("clm", []),
    "mlm": ("mlm", []),
    "mlm by line": ("mlm", ["--line_by_line", "--group_by_length", "--whole_word_mask"]),
    "plm": ("plm", []),
    "pretraining": ("pretraining", []),
    "adapter": ("mlm", ADAPTER),
}
WORKERS = ["--per_device_train_batch_size", 8, "--dataloader_num_workers", 2]
LAYOUTS = {  # of the 8 examples of an update
    "one": ["--per_device_train_batch_size", 8],
    "accumulated": ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4],
    "workers": WORKERS,
    "persistent workers": [*WORKERS, "--dataloader_persistent_workers", "true"],
    "two processes": ["--per_device_train_batch_size", 4],
}
every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=needs_adapters if case == "adapter" else []) for case in CASES]
)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> Path:
    """`layouts / layout / case` is the folder of a run; those of two processes are one job, the others another one."""
    folder = tmp_path_factory.mktemp("layouts")
    write_documents(folder / "train.txt", 60)
    write_documents(folder / "validation.txt", 30, seed=1)
    save_checkpoints(folder)

    def run_all(*layouts: str) -> None:
        for layout in layouts:
            for case, (name, flags) in CASES.items():
                if case != "adapter" or not TRANSFORMERS_5:
                    output = ["--output_dir", str(folder / layout / case)]
                    SCRIPTS[name].main([*output, *flags_of(folder, name, *LAYOUTS[layout], *flags)])

    jobs = {1: Forked(folder / "one.log", lambda: run_all(*[layout for layout in LAYOUTS if "two" not in layout]))}
    jobs[2] = Forked(folder / "two.log", lambda: run_all("two processes"), num_processes=2)
    for num_processes, job in jobs.items():
        assert job.wait(300) == [0] * num_processes, job.output
    return folder


@every_case
@pytest.mark.parametrize("layout", ["workers", "persistent workers"])
def test_workers_change_nothing(layouts, layout, case):
    assert_same_figures(results_of(layouts / layout / case), results_of(layouts / "one" / case))
    assert_same_weights(layouts / layout / case, layouts / "one" / case)


@every_case
def test_accumulation_changes_nothing(layouts, case):
    """1 x 8 = 4 x 2, though the number of targets differs from batch to batch."""
    assert_same_figures(results_of(layouts / "accumulated" / case), results_of(layouts / "one" / case), 1e-6)
    assert_same_weights(layouts / "accumulated" / case, layouts / "one" / case, 1e-6)


@every_case
def test_two_processes_are_one(layouts, case):
    """1 process x 8 = 2 processes x 4: the same examples, masks, weights and evaluation."""
    results, expected = (results_of(layouts / layout / case) for layout in ("two processes", "one"))
    assert_same_figures(results, expected, 1e-6)
    assert_same_weights(layouts / "two processes" / case, layouts / "one" / case, 1e-6)
    assert results["train_samples"] == 2 * 13
    if case == "pretraining":
        assert expected["train_loss"] == pytest.approx(
            expected["train_mlm_loss"] + expected["train_nsp_loss"], rel=1e-9
        )


def test_processes_warn_of_nothing(layouts):
    """Not of parameters without a gradient, for which DDP would search in vain."""
    assert not re.search("unused|[Ww]arning", (layouts / "two.log").read_text())


def test_the_weights_of_the_layouts_are_trained(layouts):
    """Otherwise the tests above would compare what was there before."""
    for case, (name, _) in CASES.items():
        if case != "adapter":
            before, after = weights_of(layouts / name), weights_of(layouts / "one" / case)
            assert max((before[key] - after[key]).abs().max().item() for key in before) > 1e-3


def test_the_command_line_starts_two_processes(layouts, tmp_path):
    """--num_processes 2: as one process, and one of the two prints."""
    flags = flags_of(layouts, "clm", *LAYOUTS["two processes"])
    words = [str(ROOT / "run_clm.py"), "--output_dir", str(tmp_path / "out"), *flags, "--num_processes", "2"]

    def set_command_line(monkeypatch, rank):
        monkeypatch.setattr(sys, "argv", words)

    command = Forked(tmp_path / "log", SCRIPTS["clm"].main, set_command_line)
    assert command.wait() == [0], command.output
    assert_same_figures(results_of(tmp_path / "out"), results_of(layouts / "one" / "clm"), 1e-6)
    assert_same_weights(tmp_path / "out", layouts / "one" / "clm", 1e-6)
    assert len(re.findall("^ *perplexity  ", command.output, re.MULTILINE)) == 1


# Without training


@every_script
def test_preprocess_only(name, train_file, validation_file, common_args, capsys, monkeypatch, tmp_path):
    """Counts and exits, without a model or an output folder."""
    script = SCRIPTS[name]
    monkeypatch.setattr(script, "load_model", lambda *args: pytest.fail("a model was loaded"))
    flags = [*FROM_SCRATCH[name], *common_args, "--train_file", train_file, "--validation_file", validation_file]
    flags += ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2, "--block_size", 16]
    before = set(tmp_path.iterdir())
    counts = script.main([str(flag) for flag in [*flags, "--preprocess_only"]])
    assert set(tmp_path.iterdir()) - before == {tmp_path / "cache"}
    printed = capsys.readouterr().out
    count = r"{}: ([\d,]+) documents, ([\d,]+) tokens, ([\d,]+) bytes, ([\d,]+) blocks of 16"
    for split, path in (("train", train_file), ("validation", validation_file)):
        found = re.search(count.format(split), printed).groups()
        documents, tokens, num_bytes, blocks = (int(group.replace(",", "")) for group in found)
        text = path.read_text()
        assert documents == len(text.split("\n\n") if name == "pretraining" else text.splitlines())
        assert num_bytes == len(text)
        names = ("documents", "tokens", "bytes", "blocks")
        assert [counts[f"{split}_{name}"] for name in names] == [documents, tokens, num_bytes, blocks]
        if name != "pretraining":
            assert blocks == math.ceil(tokens / (16 if name == "clm" else 14))
        if split == "train":
            assert f"steps per epoch: {math.ceil(math.ceil(blocks / 4) / 2)}\n" in printed
            assert counts["steps_per_epoch"] == math.ceil(math.ceil(blocks / 4) / 2)
