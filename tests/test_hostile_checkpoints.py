"""Checkpoints, tokenizers and datasets with code in them: it does not run, and one line says what was refused.

The code in each one writes a file, `mark`. Other tests check that it does so when transformers alone loads it.
"""

import json
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

import run_clm
from utils.compat import TRANSFORMERS_5


HUB_KERNEL = "stranger/kernel"


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """The file that hostile code writes. Loading a kernel from the Hub is replaced by writing it."""
    mark = tmp_path / "mark"
    load_kernel = "lazy_import_flash_attention" if TRANSFORMERS_5 else "load_and_register_kernel"
    monkeypatch.setattr(f"transformers.modeling_utils.{load_kernel}", lambda name, **kwargs: mark.write_text(name))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return mark


class HostileObject:
    """Writes `mark` when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "unpickled")


def hostile_code(mark: Path) -> str:
    return f"from pathlib import Path\nPath({str(mark)!r}).write_text('imported')\n"


def edit(file: Path, changes: dict) -> Path:
    """Put `changes` first in the file, so that they take effect before its other keys; returns its folder."""
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**changes, **{key: value for key, value in values.items() if key not in changes}}))
    return file.parent


@pytest.fixture
def texts(train_file, validation_file) -> list:
    return ["--train_file", train_file, "--validation_file", validation_file]


@pytest.fixture
def no_model_is_built(monkeypatch):
    def load_model(*args):
        raise AssertionError("a model was built from a hostile checkpoint")

    monkeypatch.setattr(run_clm, "load_model", load_model)


# Attention implementations that name a repository

# A config.json can set attribute_map, which gives any attribute of the configuration another name.
RENAMED = {
    config_class.model_type: {
        "attribute_map": {**config_class.attribute_map, "alias": "_attn_implementation_internal"},
        "alias": HUB_KERNEL,
    }
    for config_class in (GPT2Config, LlamaConfig)
}
NAMED_KERNELS = [
    {"attn_implementation": HUB_KERNEL},
    {"_attn_implementation": HUB_KERNEL},
    {"_attn_implementation_internal": HUB_KERNEL},
    {"_attn_implementation": f"{HUB_KERNEL}@v1:attention"},
    {"_attn_implementation": f"sdpa|{HUB_KERNEL}"},
    {"_attn_implementation": {"": HUB_KERNEL}},
    {"_attn_implementation": {"": "sdpa", "text_config": HUB_KERNEL}},
    {"attn_implementation": {"vision_config": {"": HUB_KERNEL}}},
    {"attn_implementation": [HUB_KERNEL]},
    {"_attn_implementation_internal": ["sdpa", {"": HUB_KERNEL}]},
    {"text_config": {"_attn_implementation_internal": HUB_KERNEL}},
    {"text_config": {"decoder": [{"attn_implementation": HUB_KERNEL}]}},
    RENAMED["gpt2"],
]


@pytest.mark.parametrize("changes", NAMED_KERNELS, ids=json.dumps)
@pytest.mark.parametrize("flag", ["--model_name_or_path", "--config_name"])
def test_attention_from_a_repository_is_refused(checkpoint, refused, texts, mark, no_model_is_built, flag, changes):
    folder = edit(checkpoint("gpt2") / "config.json", changes)
    message = refused(flag, folder, *texts)
    assert not mark.exists()
    assert f"{folder}/config.json" in message and HUB_KERNEL in message and "--trust_remote_code" in message


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("key", ["_attn_implementation", "_attn_implementation_internal", "alias"])
def test_transformers_loads_the_kernel(checkpoint, mark, kind, key):
    folder = edit(checkpoint(kind) / "config.json", RENAMED[kind] if key == "alias" else {key: HUB_KERNEL})
    AutoModelForCausalLM.from_pretrained(folder)
    if TRANSFORMERS_5 and key == "_attn_implementation_internal":  # transformers 5 does not read this key
        assert not mark.exists()
    else:
        assert mark.read_text() == HUB_KERNEL


@pytest.mark.parametrize("attention", ["sdpa", "eager", None])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_of_transformers_is_accepted(checkpoint, run, texts, mark, tmp_path, key, attention):
    folder = edit(checkpoint("gpt2") / "config.json", {key: attention, "nested": {key: attention}})
    results = run(tmp_path / "out", "--model_name_or_path", folder, *texts, "--do_eval")
    assert results["eval_loss"] > 0
    assert not mark.exists()


@pytest.mark.parametrize("flag", ["--attn_implementation", "--config_overrides"])
def test_attention_from_a_repository_in_a_flag_is_refused(checkpoint, refused, texts, mark, flag):
    folder = checkpoint("gpt2")
    if flag == "--attn_implementation":
        words = ["--model_name_or_path", folder, flag, HUB_KERNEL]
    else:
        words = ["--config_name", folder, flag, f"_attn_implementation={HUB_KERNEL}"]
    assert HUB_KERNEL in refused(*words, *texts)
    assert not mark.exists()


# Code that comes with a checkpoint


@pytest.mark.parametrize(
    "changes",
    [
        {"trust_remote_code": True},
        {"trust_remote_code": 1},
        {"trust_remote_code": "true"},
        {"text_config": {"trust_remote_code": True}},
        {"text_config": [{"deeper": {"trust_remote_code": {"": True}}}]},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("flag", ["--model_name_or_path", "--config_name"])
def test_trust_remote_code_in_config_is_refused(checkpoint, refused, texts, mark, no_model_is_built, flag, changes):
    folder = edit(checkpoint("gpt2") / "config.json", changes)
    message = refused(flag, folder, *texts)
    assert f"{folder}/config.json" in message and "trust_remote_code" in message


def with_model_code(folder: Path, mark: Path, model_type: str) -> Path:
    (folder / "modeling_x.py").write_text(hostile_code(mark))
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    auto_map = {name: f"modeling_x.Evil{name}" for name in names}
    return edit(folder / "config.json", {"model_type": model_type, "auto_map": auto_map})


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--config_name"])
@pytest.mark.parametrize("changes", [{}, {"trust_remote_code": True}], ids=json.dumps)
def test_code_for_an_unknown_model_type_is_refused(checkpoint, refused, texts, mark, flag, changes):
    folder = with_model_code(checkpoint("gpt2"), mark, "evil")
    edit(folder / "config.json", changes)
    message = refused(flag, folder, *texts)
    assert not mark.exists()
    assert str(folder) in message


def test_code_for_a_known_model_type_does_not_run(checkpoint, run, texts, mark, tmp_path):
    folder = checkpoint("gpt2")
    expected = run(tmp_path / "plain", "--model_name_or_path", folder, *texts, "--do_eval")
    with_model_code(folder, mark, "gpt2")
    results = run(tmp_path / "out", "--model_name_or_path", folder, *texts, "--do_eval")
    assert not mark.exists()
    assert results["eval_loss"] == expected["eval_loss"]


@pytest.mark.parametrize("model_type", ["evil", "gpt2"])
def test_transformers_runs_the_model_code(checkpoint, mark, model_type):
    folder = with_model_code(checkpoint("gpt2"), mark, model_type)
    with pytest.raises(AttributeError, match="EvilAutoConfig"):  # the module ran, but lacks the class
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert mark.exists()


def with_tokenizer_code(folder: Path, mark: Path, tokenizer_class: str, legacy: bool) -> Path:
    (folder / "tokenization_x.py").write_text(hostile_code(mark))
    classes = ["tokenization_x.Evil", "tokenization_x.EvilFast"]
    auto_map = classes if legacy else {"AutoTokenizer": classes}
    return edit(folder / "tokenizer_config.json", {"tokenizer_class": tokenizer_class, "auto_map": auto_map})


@pytest.fixture
def tokenizer_folder(tokenizer, tmp_path) -> Path:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


SMALL_GPT2 = ["--model_type", "gpt2", "--config_overrides", "n_embd=8,n_layer=1,n_head=1,n_positions=32"]


@pytest.mark.parametrize("legacy", [False, True])
def test_code_for_an_unknown_tokenizer_is_refused(tokenizer_folder, refused, texts, mark, no_model_is_built, legacy):
    with_tokenizer_code(tokenizer_folder, mark, "Evil", legacy)
    message = refused(*SMALL_GPT2, "--tokenizer_name", tokenizer_folder, *texts)
    assert not mark.exists()
    assert str(tokenizer_folder) in message and "trust_remote_code" in message


@pytest.mark.parametrize("legacy", [False, True])
def test_code_for_a_known_tokenizer_does_not_run(tokenizer_folder, run, texts, mark, tmp_path, legacy):
    with_tokenizer_code(tokenizer_folder, mark, "PreTrainedTokenizerFast", legacy)
    run(tmp_path / "out", *SMALL_GPT2, "--tokenizer_name", tokenizer_folder, *texts, "--do_eval")
    assert (tmp_path / "out" / "eval_results.json").exists()
    assert not mark.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_transformers_runs_the_tokenizer_code(tokenizer_folder, mark, legacy):
    with_tokenizer_code(tokenizer_folder, mark, "Evil", legacy)
    with pytest.raises(AttributeError, match="EvilFast"):
        AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"trust_remote_code": True},
        {"_attn_implementation": HUB_KERNEL},
        {"model_type": "evil", "auto_map": {"AutoConfig": "modeling_x.Evil", "AutoTokenizer": ["modeling_x.E", None]}},
    ],
    ids=json.dumps,
)
def test_tokenizer_folder_with_a_hostile_config(tokenizer_folder, refused, texts, mark, no_model_is_built, changes):
    edit(tokenizer_folder / "config.json", {"model_type": "gpt2", **changes})
    (tokenizer_folder / "modeling_x.py").write_text(hostile_code(mark))
    (tokenizer_folder / "tokenizer_config.json").unlink()  # then the tokenizer's class comes from config.json
    flags = [*SMALL_GPT2, "--tokenizer_name", tokenizer_folder, *texts]
    if TRANSFORMERS_5 and "auto_map" in changes:  # 5 loads tokenizer.json whatever the class
        with pytest.raises(AssertionError, match="a model was built"):
            refused(*flags)
        assert not mark.exists()
        return
    message = refused(*flags)
    assert not mark.exists()
    assert str(tokenizer_folder) in message and "trust_remote_code" in message


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--config_name", "--tokenizer_name"])
@pytest.mark.parametrize("changes", [{"trust_remote_code": True}, NAMED_KERNELS[1]], ids=json.dumps)
def test_second_config_file_is_checked_too(checkpoint, refused, texts, mark, no_model_is_built, flag, changes):
    """transformers reads the file that `configuration_files` lists for its version instead of config.json."""
    folder = checkpoint("gpt2")
    (folder / "config.4.0.0.json").write_text((folder / "config.json").read_text())
    edit(folder / "config.4.0.0.json", changes)
    edit(folder / "config.json", {"configuration_files": ["config.4.0.0.json"]})
    for key, value in changes.items():
        assert getattr(AutoConfig.from_pretrained(folder), key) == value
    message = refused(*(SMALL_GPT2 if flag == "--tokenizer_name" else []), flag, folder, *texts)
    assert not mark.exists()
    assert str(folder) in message


def test_dataset_script_does_not_run(refused, mark, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "corpus.py").write_text(hostile_code(mark))
    message = refused(*SMALL_GPT2, "--train_tokenizer", "bpe", "--dataset_name", folder)
    assert not mark.exists()
    assert str(folder) in message


# Pickles


def write_hostile_pickle(file: Path, mark: Path, legacy: bool) -> None:
    if legacy:
        file.write_bytes(pickle.dumps(HostileObject(mark)))
    else:
        torch.save({"lm_head.weight": HostileObject(mark)}, file)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_runs_the_code(tmp_path, mark, legacy):
    write_hostile_pickle(tmp_path / "hostile.bin", mark, legacy)
    if legacy:
        pickle.loads((tmp_path / "hostile.bin").read_bytes())
    else:
        torch.load(tmp_path / "hostile.bin", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_hostile_pickle_of_weights_is_refused(checkpoint, refused, texts, mark, legacy, sharded, dtype):
    folder = checkpoint("gpt2")
    (folder / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    write_hostile_pickle(folder / name, mark, legacy)
    if sharded:
        index = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": name}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    message = refused("--model_name_or_path", folder, *texts, "--dtype", dtype)
    assert not mark.exists()
    assert f"--model_name_or_path {folder}: " in message


def test_harmless_pickle_of_weights_loads(checkpoint, run, texts, mark, tmp_path):
    folder = checkpoint("gpt2")
    expected = run(tmp_path / "safetensors", "--model_name_or_path", folder, *texts, "--do_eval")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    results = run(tmp_path / "pickle", "--model_name_or_path", folder, *texts, "--do_eval")
    assert results["eval_loss"] == expected["eval_loss"]


@pytest.fixture
def trained(run, checkpoint, texts, tmp_path):
    """An output folder with the checkpoint of step 1 of 2."""
    flags = ["--model_name_or_path", checkpoint("gpt2"), *texts, "--do_train", "--block_size", "16"]
    flags += ["--save_strategy", "steps", "--save_steps", "1", "--per_device_train_batch_size", "1"]
    run(tmp_path / "trained", *flags, "--max_steps", "1")
    return tmp_path / "trained", [*flags, "--max_steps", "2"]


def is_pickle(file: Path) -> bool:
    if zipfile.is_zipfile(file):
        return any(name.endswith(".pkl") for name in zipfile.ZipFile(file).namelist())
    return file.read_bytes()[:1] == b"\x80"  # first byte of every pickle since protocol 2


def test_training_writes_pickles_only_to_resume(trained):
    folder, _ = trained
    files = [file for file in folder.rglob("*") if file.is_file()]
    pickles = {file.relative_to(folder).as_posix() for file in files if is_pickle(file)}
    assert pickles == {f"checkpoint-1/{name}" for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")}
    assert not [file for file in files if file.name == "training_args.bin"]
    assert (folder / "model.safetensors").exists() and (folder / "checkpoint-1" / "model.safetensors").exists()


def test_hostile_pickle_in_the_resume_state_does_not_run(trained, run, mark):
    folder, flags = trained
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        file = folder / "checkpoint-1" / name
        content = file.read_bytes()
        for legacy in (False, True):
            write_hostile_pickle(file, mark, legacy)
            with pytest.raises((SystemExit, pickle.UnpicklingError)):
                run(folder, *flags)
            assert not mark.exists(), name
        file.write_bytes(content)
    run(folder, *flags)
    assert (folder / "checkpoint-2").exists()
