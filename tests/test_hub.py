"""Uploads to a local hub and downloads from it, over HTTP, with the real clients."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import ROOT, make_lines, needs_adapters, set_offline
from huggingface_hub import ModelCard

import run_clm


WIKITEXT = ["--dataset_name", "wikitext", "--dataset_config_name", "raw"]
GPT2 = ["--model_name_or_path", "gpt2"]
TRAIN = [*GPT2, *WIKITEXT, "--max_steps", 2, "--block_size", 32]
PUSH = ["--push_to_hub", "--hub_token", "hf_writer"]
DATA_CARD = b"""---
configs:
- config_name: raw
  data_files:
  - {split: train, path: raw/train.jsonl}
  - {split: validation, path: raw/validation.jsonl}
---
"""


def rows(num_lines: int, seed: int) -> bytes:
    return "".join(json.dumps({"text": f"{line}\n"}) + "\n" for line in make_lines(num_lines, seed)).encode()


@pytest.fixture
def stocked_hub(hub, checkpoint):
    """A hub with a GPT-2, whose card has a license, and a WikiText. Both also have names without an owner."""
    folder = checkpoint("gpt2")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    hub.add("model", "openai-community/gpt2", folder)
    files = {"README.md": DATA_CARD, "raw/train.jsonl": rows(40, 0), "raw/validation.jsonl": rows(10, 1)}
    hub.add("dataset", "Salesforce/wikitext", files)
    hub.redirects |= {"gpt2": "openai-community/gpt2", "wikitext": "Salesforce/wikitext"}
    return hub


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The clients retry after 1, 2, 4 ... seconds."""
    clock = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


# Uploads


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_upload(strategy, stocked_hub, run, tmp_path, capfd, caplog):
    stocked_hub.part_size = 20_000  # the weights are uploaded in parts
    results = run(
        tmp_path / "out", *TRAIN, *PUSH, "--hub_strategy", strategy, "--hub_private_repo", "--report_to",
        "tensorboard", "--save_strategy", "steps", "--save_steps", 1, "--token", "hf_reader",
    )  # fmt: skip
    repository = stocked_hub.repositories["model", "tester/out"]
    files = repository.files()
    assert repository.private
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "loss.png", "run_args.yaml"):
        assert files[name] == (tmp_path / "out" / name).read_bytes()
    traces = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out" / "runs").rglob("*tfev*")}
    assert traces and traces <= set(files)
    assert all(files[name] == (tmp_path / "out" / name).read_bytes() for name in traces)
    folders = {name.split("/")[0] for name in files if "/" in name}
    of_checkpoints = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}
    assert folders == {"runs"} | of_checkpoints.get(strategy, set())
    if strategy == "checkpoint":
        last = tmp_path / "out" / "checkpoint-2"
        uploaded = {name.removeprefix("last-checkpoint/") for name in files if name.startswith("last-checkpoint/")}
        assert uploaded == {path.relative_to(last).as_posix() for path in last.rglob("*") if path.is_file()}
        assert files["last-checkpoint/trainer_state.json"] == (last / "trainer_state.json").read_bytes()
    num_commits = {"end": 1, "every_save": 2, "checkpoint": 3, "all_checkpoints": 5}[strategy]
    assert len(repository.commits) - 1 >= num_commits
    assert not [name for name in files if name.endswith("training_args.bin") or "optimizer" in name.split("/")[0]]
    assert any(request.startswith("PUT") and request.endswith("/2") for request in stocked_hub.requests)
    assert not list((tmp_path / "out").glob("checkpoint-upload-*"))

    # The tokens appear nowhere.
    printed = capfd.readouterr()
    written = all_bytes(tmp_path / "out") + b"".join(files.values())
    for secret in ("hf_writer", "hf_reader"):
        assert secret.encode() not in written
        assert secret not in printed.out + printed.err + caplog.text

    # The card and the model can be loaded from the hub.
    card = ModelCard.load("tester/out", token="hf_writer")
    assert card.data.license == "mit"
    assert card.data.base_model == "gpt2"
    assert card.data.datasets == ["wikitext"]
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.library_name == "transformers"
    assert {(result.metric_type, result.metric_value) for result in card.data.eval_results} == {
        ("loss", results["eval_loss"]), ("perplexity", results["perplexity"]),
        ("bits_per_byte", results["bits_per_byte"]), ("accuracy", results["eval_accuracy"]),
    }  # fmt: skip
    result = card.data.eval_results[0]
    assert (result.task_type, result.dataset_type, result.dataset_config) == ("text-generation", "wikitext", "raw")
    assert "![Training and evaluation loss over the steps](loss.png)" in card.content
    assert 'AutoModelForCausalLM.from_pretrained("tester/out")' in card.content
    again = run(
        tmp_path / "again", "--model_name_or_path", "tester/out", "--token", "hf_writer", *WIKITEXT, "--do_eval",
        "--block_size", 32,
    )  # fmt: skip
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)


REFUSALS = {
    "no token": ([], "access denied: there is no token"),
    "unknown token": (["--hub_token", "hf_wrong"], "access denied: the Hub rejects this token"),
    "read-only token": (["--hub_token", "hf_reader"], "access denied: this token .* is not allowed"),
    "name of another user": (
        ["--hub_token", "hf_writer", "--hub_model_id", "stranger/new"], "access denied: this token .* is not allowed",
    ),
    "repository of another user": (
        ["--hub_token", "hf_writer", "--hub_model_id", "openai-community/gpt2"], "access denied: .* is not allowed",
    ),
    "invalid name": (["--hub_token", "hf_writer", "--hub_model_id", "a b"], "--hub_model_id a b: .* letters"),
    "no such branch": (["--hub_token", "hf_writer", "--hub_revision", "dev"], "no such revision"),
    "offline": (["--hub_token", "hf_writer"], "no network: HF_HUB_OFFLINE is set"),
    "server unreachable": (["--hub_token", "hf_writer"], "network error: http://127.0.0.1.* cannot be reached"),
    "server error": (["--hub_token", "hf_writer"], "network error: the Hub responds with status 503"),
    "no training": (["--hub_token", "hf_writer", "--do_eval"], "--push_to_hub requires --do_train"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_upload_is_refused_early(case, stocked_hub, refused, monkeypatch, validation_file):
    flags, message = REFUSALS[case]
    if case == "offline":
        set_offline(monkeypatch, True)
    elif case.startswith("server"):
        stocked_hub.fail(" /api/repos", 0 if case == "server unreachable" else 503)
    before = {key: dict(repository.branches) for key, repository in stocked_hub.repositories.items()}
    monkeypatch.setattr(run_clm, "load_corpus", None)  # must not be called
    scratch = ["--model_type", "gpt2", "--config_overrides", "n_embd=8,n_layer=1,n_head=2", "--train_tokenizer", "bpe"]
    line = refused(*scratch, "--train_file", validation_file, "--push_to_hub", *flags)
    assert re.search(message, line)
    assert "hf_w" not in line and "hf_r" not in line
    after = {key: repository.branches for key, repository in stocked_hub.repositories.items()}
    after.pop(("model", "tester/refused-output"), None)  # created before its branch is found missing
    assert after == before


def test_hub_flags_without_push_to_hub(stocked_hub, run, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "out", *TRAIN, "--hub_model_id", "tester/x", "--hub_token", "hf_writer")
    assert "--hub_model_id, --hub_token: no effect: it goes with --push_to_hub" in caplog.text
    assert list(stocked_hub.repositories) == [("model", "openai-community/gpt2"), ("dataset", "Salesforce/wikitext")]


def test_failed_upload_of_the_results(stocked_hub, common_args, tmp_path, capsys):
    """The error line has a command that uploads the results, which are complete, and the command works."""
    stocked_hub.fail("PUT /upload", 0, after=1)
    out = tmp_path / "the output"
    args = ["--output_dir", out, *common_args, *TRAIN, *PUSH, "--hub_strategy", "end", "--hub_model_id", "tester/mine"]
    with pytest.raises(SystemExit) as stopped:
        run_clm.main([str(arg) for arg in args])
    assert stopped.value.code == 1
    errors = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "".join(errors)
    line = next(line for line in errors if line.startswith("run_clm.py: error: "))
    assert "network error: " in line and f"complete in {out}" in line
    names = {path.name for path in out.iterdir()}
    assert names >= {"model.safetensors", "README.md", "all_results.json", "trainer_state.json", "loss.png"}
    assert list(stocked_hub.repositories["model", "tester/mine"].files()) == []

    stocked_hub.failures.clear()
    words = shlex.split(line[line.index("hf upload ") :])
    environment = os.environ | {"HF_TOKEN": "hf_writer", "HF_HUB_OFFLINE": "0"}
    command = [Path(sys.executable).with_name("hf"), *words[1:]]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stderr
    uploaded = stocked_hub.repositories["model", "tester/mine"].files()
    assert uploaded == {
        path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_failed_upload_of_a_checkpoint(stocked_hub, run, tmp_path, caplog):
    """Training continues with a warning, and the final upload has all files."""
    stocked_hub.fail("POST .*/commit/", 500)
    saving = ["--save_strategy", "steps", "--save_steps", 1, "--hub_always_push"]
    original = run_clm.LMTrainer.push_to_hub

    def push_to_hub(trainer):
        trainer.checkpoint_uploads.finish(trainer.args)
        stocked_hub.failures.clear()
        original(trainer)

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(run_clm.LMTrainer, "push_to_hub", push_to_hub)
        run(tmp_path / "out", *TRAIN, *PUSH, *saving)
    reason = "network error: the Hub responds with status 500"
    for step in (1, 2):
        assert f"the upload of checkpoint-{step} failed, training continues: {reason}" in caplog.text
    files = stocked_hub.repositories["model", "tester/out"].files()
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert not list((tmp_path / "out").glob("checkpoint-upload-*"))


def test_upload_from_a_new_process(stocked_hub, tmp_path):
    """Configured by the environment only; the branch already exists."""
    huggingface_hub.create_repo("tester/model", token="hf_writer")
    stocked_hub.repositories["model", "tester/model"].commit({"old.txt": b"old"}, "dev")
    environment = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    flags = [
        "--push_to_hub",
        "--hub_model_id",
        "tester/model",
        "--hub_revision",
        "dev",
        "--output_dir",
        tmp_path / "o",
    ]
    words = [sys.executable, "run_clm.py", *TRAIN, *flags, "--report_to", "none", "--bf16", "false"]
    result = subprocess.run(
        list(map(str, words)), cwd=ROOT, env=os.environ | environment | {"HF_TOKEN": "hf_writer"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "hf_writer" not in result.stdout + result.stderr
    files = stocked_hub.repositories["model", "tester/model"].files("dev")
    assert {"model.safetensors", "README.md", "old.txt"} <= set(files)
    assert stocked_hub.repositories["model", "tester/model"].files("main") == {}


# Downloads


def test_revisions_and_private_repositories(stocked_hub, checkpoint, run, tmp_path):
    old = run(tmp_path / "old", *GPT2, *WIKITEXT, "--do_eval", "--block_size", 32)
    model = checkpoint("gpt2", n_layer=1)
    commit = stocked_hub.add("model", "tester/private", model, private=True)
    stocked_hub.add("model", "tester/private", {}, "main")
    stocked_hub.add("dataset", "tester/texts", {"a.jsonl": rows(30, 5)}, "v1", private=True)
    stocked_hub.add("dataset", "tester/texts", {"a.txt": b"no\n"})
    flags = ["--do_eval", "--block_size", 32, "--token", "hf_reader"]
    private = ["--model_name_or_path", "tester/private", "--model_revision", commit]
    data = ["--dataset_name", "tester/texts", "--dataset_revision", "v1"]
    first = run(tmp_path / "first", *private, *data, *flags)
    (tmp_path / "texts.jsonl").write_bytes(rows(30, 5))
    folder = ["--model_name_or_path", model, "--dataset_name", "json", "--do_eval", "--block_size", 32]
    local = run(tmp_path / "local", *folder[:2], "--train_file", tmp_path / "texts.jsonl", *folder[4:])
    assert first["eval_loss"] == local["eval_loss"] != old["eval_loss"]
    assert first["eval_bytes"] == local["eval_bytes"]


@pytest.mark.parametrize("way", ["HF_HUB_OFFLINE", "server unreachable"])
def test_from_the_cache(way, stocked_hub, run, monkeypatch, tmp_path):
    flags = [*GPT2, *WIKITEXT, "--do_eval", "--block_size", 32]
    online = run(tmp_path / "online", *flags)
    if way == "server unreachable":
        stocked_hub.fail("", 0)
        huggingface_hub.HfFileSystem.clear_instance_cache()
    else:
        set_offline(monkeypatch, True)
    offline = run(tmp_path / "offline", *flags)
    assert offline["eval_loss"] == online["eval_loss"]


CAUSES = {
    "missing": (["none/such"], "wrong name: there is no folder none/such, and the Hub has no such repository"),
    "malformed": (["a//b"], "wrong name: there is no folder a//b|Couldn't find any data file at .*/a/b"),
    "private": (["stranger/private"], "access denied, if it is private"),
    "private, other token": (["stranger/private", "--token", "hf_reader"], "access denied, if it is private"),
    "unknown token": (["stranger/private", "--token", "hf_wrong"], "access denied: the Hub rejects this token"),
    "gated": (["stranger/gated", "--token", "hf_reader"], "access denied: stranger/gated is gated"),
    "revision": (["stranger/public"], "wrong name: stranger/public has no such revision"),
    "offline": (["stranger/public"], "no network: HF_HUB_OFFLINE is set"),
    "server unreachable": (["stranger/public"], "network error: http://127.0.0.1.* cannot be reached"),
    "server error": (["stranger/public"], "network error: "),
}


@pytest.mark.parametrize("what", ["model", "tokenizer", "dataset", pytest.param("adapter", marks=needs_adapters)])
@pytest.mark.parametrize("cause", CAUSES)
def test_download_errors(cause, what, hub, refused, checkpoint, validation_file, monkeypatch):
    kind = "dataset" if what == "dataset" else "model"
    files = {"README.md": b"A card.", "a.txt": b"text\n", "config.json": b"{}", "adapter_config.json": b"{}"}
    hub.add(kind, "stranger/private", files, private=True)
    hub.add(kind, "stranger/gated", files, gated=True)
    hub.add(kind, "stranger/public", files)
    (name, *more), message = CAUSES[cause]
    if cause == "offline":
        set_offline(monkeypatch, True)
    elif cause.startswith("server"):
        hub.fail("", 0 if cause == "server unreachable" else 502)
    elif cause == "revision":
        flag = {"dataset": "--dataset_revision", "adapter": "--adapter_revision"}.get(what, "--model_revision")
        more = [flag, "v9"]
    model = checkpoint("gpt2")
    flags = {
        "model": ["--model_name_or_path", name, "--validation_file", validation_file],
        "tokenizer": ["--model_name_or_path", model, "--tokenizer_name", name, "--validation_file", validation_file],
        "dataset": ["--model_name_or_path", model, "--dataset_name", name],
        "adapter": ["--model_name_or_path", model, "--load_adapter", name, "--validation_file", validation_file],
    }[what]
    line = refused(*flags, *more, "--do_eval")
    assert re.search(message, line), line
    assert name in line and "hf_" not in line.replace("hf_home", "")


@needs_adapters
def test_adapters(hub, checkpoint, run, tmp_path, validation_file, train_file):
    """One repository has an adapter, its language adapter and the embeddings that were trained with it."""
    hub.add("model", "tester/base", checkpoint("gpt2"))
    flags = ["--model_name_or_path", "tester/base", "--block_size", 32]
    train = [*flags, "--train_file", train_file, "--validation_file", validation_file, "--max_steps", 3]
    train += ["--train_adapter", "--learning_rate", "1e-2", *PUSH]
    run(tmp_path / "language", *train, "--hub_model_id", "tester/language", "--adapter_name", "en")
    stacked = ["--load_lang_adapter", "tester/language", "--adapter_name", "task", "--hub_model_id", "tester/task"]
    results = run(tmp_path / "task", *train, *stacked, "--train_embeddings")
    files = set(hub.repositories["model", "tester/task"].files())
    assert {"adapter.safetensors", "model_weights.safetensors", "language_adapter/adapter.safetensors"} <= files

    card = ModelCard.load("tester/task")
    assert (card.data.library_name, card.data.base_model) == ("adapters", "tester/base")
    assert {result.metric_type for result in card.data.eval_results} >= {"loss", "perplexity", "accuracy"}

    evaluate = ["--validation_file", validation_file, "--do_eval"]
    loaded = run(tmp_path / "loaded", *flags, *evaluate, "--load_adapter", "tester/task")
    assert loaded["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
    plain = run(tmp_path / "plain", *flags, *evaluate)
    assert abs(plain["eval_loss"] - results["eval_loss"]) > 1e-3

    # A later commit, and the first one as a revision.
    first = hub.repositories["model", "tester/task"].branches["main"]
    hub.add("model", "tester/task", hub.repositories["model", "tester/language"].files())
    other = run(tmp_path / "other", *flags, *evaluate, "--load_adapter", "tester/task")
    assert other["eval_loss"] != loaded["eval_loss"]
    revision = ["--load_adapter", "tester/task", "--adapter_revision", first]
    assert run(tmp_path / "same", *flags, *evaluate, *revision)["eval_loss"] == loaded["eval_loss"]

    # The card's snippet, in plain PyTorch.
    snippet = re.search(r"```python\n(.*?)```", card.content, re.DOTALL)[1]
    assert 'folder = snapshot_download("tester/task")' in snippet
    names = {}
    hub.repositories["model", "tester/task"].branches["main"] = first
    exec(snippet, names)
    ids = names["tokenizer"](validation_file.read_text(), return_tensors="pt")["input_ids"][:, :32]
    with torch.no_grad():
        logits = names["model"].eval()(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        names["model"].set_active_adapters("task")
        assert not torch.allclose(names["model"](ids).logits, logits)  # the language adapter has an effect
    one_block = run(tmp_path / "one", *flags, *evaluate, *revision, "--max_eval_samples", 1)
    assert one_block["eval_loss"] == pytest.approx(loss.item(), abs=1e-5)


@needs_adapters
def test_repository_without_an_adapter(hub, checkpoint, refused, validation_file):
    hub.add("model", "tester/base", checkpoint("gpt2"))
    flags = ["--model_name_or_path", "tester/base", "--validation_file", validation_file, "--do_eval"]
    line = refused(*flags, "--load_adapter", "tester/base")
    assert "--load_adapter tester/base: tester/base is on the Hub, but has no adapter" in line
