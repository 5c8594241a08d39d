"""Fixtures: a little text, tokenizers, and models of a layer or two. Nothing is downloaded or left behind.

torch, transformers, and the scripts are imported by the functions and fixtures that use them, so that a test that
needs none of them starts at once.
"""

import atexit
import importlib
import importlib.metadata
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import HubServer


HUB = HubServer()  # its address is reserved; it answers from when the fixture `hub` is first used
HF_HOME = tempfile.mkdtemp(prefix="hf-home-")  # neither the user's token nor the user's cache
atexit.register(shutil.rmtree, HF_HOME, ignore_errors=True)
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH"):
    os.environ.pop(name, None)
os.environ |= {  # before the libraries are imported, which read them once
    "HF_HOME": HF_HOME,
    "HF_ENDPOINT": HUB.url,
    "HF_HUB_DISABLE_XET": "1",  # the Hub's other protocol for large files, with servers of its own
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # small products are no faster with two, and ten times as slow on a busy core
}

TRANSFORMERS_5 = int(importlib.metadata.version("transformers").split(".")[0]) >= 5

ROOT = Path(__file__).resolve().parent.parent
collect_ignore = ["test_adapters.py" if TRANSFORMERS_5 else "test_adapters_refused.py"]
needs_adapters = pytest.mark.skipif(TRANSFORMERS_5, reason="the library adapters needs transformers 4.57")

# Files and tests whose subject depends on neither transformers, tokenizers, nor datasets. They get the marker
# any_version and run with 4.57 alone: `make tests TRANSFORMERS=5` deselects them.
ANY_VERSION = (
    "test_processes.py::test_accelerate_takes_the_recipe",
    "test_processes.py::test_slurm_job_is_requeued_only_after_the_signal",
    "utils/config/test_entry_point.py",
    "utils/examples/test_document_blocks.py",
    "utils/examples/test_packed_blocks.py",
    "utils/examples/test_permutation_collator.py",
    "utils/examples/test_sentence_pairs.py",
    "utils/test_environment.py",
    "utils/test_fingerprint.py",
    "utils/test_launch.py",
    "utils/test_rng.py",
    "utils/tokens/test_token_store.py::test_processes_of_a_job_build_once",
    "utils/training/test_checkpoint_files.py",
    "utils/training/test_divergence.py",
    "utils/training/test_signals.py",
)


def pytest_configure(config):
    config.addinivalue_line("markers", "any_version: depends on neither transformers, tokenizers, nor datasets")
    for name in ANY_VERSION:
        file, _, test = name.partition("::")
        path = ROOT / "tests" / file
        if not path.is_file() or f"def {test}(" not in path.read_text() and test:
            raise pytest.UsageError(f"conftest.ANY_VERSION: there is no {name}")


def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.relative_to(ROOT / "tests").as_posix()
        if file in ANY_VERSION or f"{file}::{item.originalname}" in ANY_VERSION:
            item.add_marker("any_version")


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "red", "bird", "fly", "over", "two", "green"]
WORDS += ["hills", "near", "some", "old", "stone", "houses", "by", "river"]


def make_lines(num_lines: int, seed: int = 0) -> list[str]:
    """Lines of 1 to 20 words with an order that can be learned: each word is likely followed by its neighbor."""
    generator = random.Random(seed)
    lines = []
    for _ in range(num_lines):
        word = generator.randrange(len(WORDS))
        line = []
        for _ in range(generator.randint(1, 20)):
            line.append(WORDS[word])
            word = (word + 1) % len(WORDS) if generator.random() < 0.8 else generator.randrange(len(WORDS))
        lines.append(" ".join(line) + ".")
    return lines


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer of 300 tokens."""
    from utils.tokens.tokenizer_training import train_tokenizer

    return train_tokenizer("bpe", [make_lines(200)], vocab_size=300)


@pytest.fixture
def train_file(tmp_path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text("\n".join(make_lines(60)) + "\n")
    return path


@pytest.fixture
def validation_file(tmp_path) -> Path:
    path = tmp_path / "validation.txt"
    path.write_text("\n".join(make_lines(30, seed=1)) + "\n")
    return path


@pytest.fixture
def load_documents(tmp_path):
    """`load_documents(train_file=..., seed=...)`: load_corpus with default flags. A test's calls share a cache.

    Files that are read in place are read at once, so that a test can look at any row.
    """
    from datasets import Dataset

    from utils.config.data_arguments import DataArguments
    from utils.text.corpus import load_corpus
    from utils.text.file_documents import FileDocuments

    def call(*, do_train: bool = True, do_eval: bool = False, seed: int = 42, **data_flags) -> dict:
        for name in {"train_file", "validation_file"} & data_flags.keys():
            paths = data_flags[name]
            data_flags[name] = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
        training_args = SimpleNamespace(
            do_train=do_train, do_eval=do_eval, seed=seed, group_by_length=False, dataloader_num_workers=0
        )
        corpus = load_corpus(DataArguments(**data_flags), training_args, str(tmp_path / "cache"), None)
        return {
            split: Dataset.from_list([row for rows in documents.read() for row in rows])
            if isinstance(documents, FileDocuments)
            else documents
            for split, documents in corpus.items()
        }

    return call


def make_model(kind: str, vocab_size: int, **overrides):
    """A random model of two layers, 16 wide, without dropout. Large weights keep its loss away from log(V)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if kind == "gpt2":
        config = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 128, "vocab_size": vocab_size}
        config |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.3}
        config |= {"bos_token_id": 0, "eos_token_id": 0}
        return GPT2LMHeadModel(GPT2Config(**(config | overrides)))
    config = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config |= {"max_position_embeddings": 128, "vocab_size": vocab_size, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**(config | overrides)))


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    """`checkpoint("gpt2")` or `checkpoint("llama")`: the folder of a small random model with its tokenizer."""

    def save(kind: str, **overrides) -> Path:
        folder = tmp_path / f"{kind}-checkpoint"
        make_model(kind, len(tokenizer), **overrides).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


# Configurations of masked models: the names that different architectures have for the same sizes.
MASKED_SIZES = {
    "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "embedding_size": 8,
    "max_position_embeddings": 64, "initializer_range": 0.3, "hidden_dropout_prob": 0.0, "pad_token_id": 1,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
MASKED_SIZES_BY_TYPE = {
    "distilbert": {
        "n_layers": 2, "dim": 16, "hidden_dim": 32, "n_heads": 2, "max_position_embeddings": 64, "dropout": 0.0,
        "attention_dropout": 0.0, "initializer_range": 0.3, "pad_token_id": 1,
    },
    "modernbert": MASKED_SIZES | {"cls_token_id": 0, "sep_token_id": 2, "global_attn_every_n_layers": 2},
    "xlm": {
        "n_layers": 2, "emb_dim": 16, "n_heads": 2, "max_position_embeddings": 64, "dropout": 0.0,
        "attention_dropout": 0.0, "pad_token_id": 1,
    },
}  # fmt: skip


def make_masked_model(model_type: str, vocab_size: int, **overrides):
    """A random masked model of two layers, 16 wide, without dropout."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    torch.manual_seed(0)
    sizes = MASKED_SIZES_BY_TYPE.get(model_type, MASKED_SIZES)
    config = AutoConfig.for_model(model_type, **(sizes | overrides), vocab_size=vocab_size)
    return AutoModelForMaskedLM.from_config(config)


def make_xlnet(vocab_size: int, **overrides):
    """A random XLNet of two layers, 16 wide, without dropout."""
    import torch
    from transformers import XLNetConfig, XLNetLMHeadModel

    torch.manual_seed(0)
    config = {"n_layer": 2, "d_model": 16, "n_head": 2, "d_inner": 32, "vocab_size": vocab_size, "dropout": 0.0}
    config |= {"initializer_range": 0.3, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return XLNetLMHeadModel(XLNetConfig(**(config | overrides)))


@pytest.fixture(scope="session")
def masked_tokenizer():
    """A byte-level BPE tokenizer of 300 tokens with RoBERTa's special tokens."""
    from utils.tokens.tokenizer_training import train_tokenizer

    return train_tokenizer("bpe", [make_lines(200)], 300, add_special_tokens=True)


@pytest.fixture
def masked_checkpoint(tmp_path, masked_tokenizer):
    """`masked_checkpoint("roberta")`: the folder of a small random masked model with its tokenizer."""

    def save(model_type: str, **overrides) -> Path:
        folder = tmp_path / f"{model_type}-checkpoint"
        make_masked_model(model_type, len(masked_tokenizer), **overrides).save_pretrained(folder)
        masked_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def common_args(tmp_path) -> list[str]:
    """Flags that keep a run small, exact and inside the test's folder."""
    return [
        "--cache_dir", str(tmp_path / "cache"), "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true",
        "--save_strategy", "no",
    ]  # fmt: skip


@pytest.fixture
def run(common_args):
    """Run a script in this process with the common flags; `run(output_dir, *flags, script=...)` returns its results.

    The script is run_clm unless another one is given.
    """

    def call(output_dir: Path, *flags, script=None) -> dict:
        script = script or importlib.import_module("run_clm")
        script.main(["--output_dir", str(output_dir), *common_args, *map(str, flags)])
        results = output_dir / "all_results.json"
        return json.loads(results.read_text()) if results.exists() else {}

    return call


@pytest.fixture
def refused(common_args, tmp_path, capsys):
    """Run a script that must refuse its flags: returns the one line that it prints, and checks exit code 2."""

    def call(*flags, script=None, output_dir: Path | None = None) -> str:
        script = script or importlib.import_module("run_clm")
        output_dir = output_dir or tmp_path / "refused-output"
        existed = output_dir.exists()
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            script.main(["--output_dir", str(output_dir), *common_args, *map(str, flags)])
        assert stopped.value.code == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
        assert len(errors) == 1
        assert existed or not output_dir.exists()
        return errors[0]

    return call


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub for the real clients in this process, which are online and can reach nothing else."""
    import huggingface_hub

    HUB.start()
    HUB.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    set_offline(monkeypatch, False)
    yield HUB
    monkeypatch.undo()
    set_offline(monkeypatch, True)
    HUB.clear()


def set_offline(monkeypatch, value: bool) -> None:
    """Has the effect of HF_HUB_OFFLINE, which is only read when the libraries are imported."""
    import datasets
    import huggingface_hub
    import transformers

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", value)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", value)
    if hasattr(transformers.utils.hub, "_is_offline_mode"):  # transformers 4
        monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", value)
    reset_sessions = getattr(huggingface_hub.utils, "reset_sessions", None) or huggingface_hub.close_session
    reset_sessions()
    huggingface_hub.HfFileSystem.clear_instance_cache()


def run_python(*words, **environment) -> subprocess.CompletedProcess:
    """Run Python in a fresh process in the repository's root. If it fails, the error has its output."""
    result = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result
