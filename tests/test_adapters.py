"""Adapters in every script: what is trained, what is saved, and that the saved folder reproduces the model."""

import hashlib
import json
import re

import pytest
import torch
from adapters import ADAPTER_CONFIG_MAP
from conftest import ROOT, make_lines, make_xlnet, run_python
from huggingface_hub import ModelCard
from processes import killed_after_checkpoint
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.config.adapter_arguments import safe_name


SCRIPTS = {"gpt2": run_clm, "llama": run_clm, "bert": run_mlm, "roberta": run_mlm, "xlnet": run_plm}
IDENTITY_AT_START = ("par_bn", "lora", "ia3")


@pytest.fixture
def base(tmp_path, checkpoint, masked_checkpoint, masked_tokenizer):
    """`base("gpt2")`: the folder of a small random model with its tokenizer."""

    def save(model_type: str):
        if model_type in ("gpt2", "llama"):
            return checkpoint(model_type)
        if model_type == "roberta":
            return masked_checkpoint(model_type)
        folder = tmp_path / f"{model_type}-checkpoint"
        if model_type == "xlnet":
            make_xlnet(len(masked_tokenizer)).save_pretrained(folder)
        else:
            make_bert(len(masked_tokenizer)).save_pretrained(folder)
        masked_tokenizer.save_pretrained(folder)
        return folder

    return save


def make_bert(vocab_size: int) -> BertForMaskedLM:
    """With the names of BERT's sizes only: the library would also read those of other architectures."""
    torch.manual_seed(0)
    config = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
    return BertForMaskedLM(BertConfig(**config, vocab_size=vocab_size, max_position_embeddings=64, pad_token_id=1))


@pytest.fixture
def train(run, train_file, validation_file, tmp_path):
    """`train(folder, script, name, *flags)`: train an adapter for a few steps, with the output folder `name`."""

    def call(folder, script, name: str, *flags) -> dict:
        return run(
            tmp_path / name, "--model_name_or_path", folder, "--train_file", train_file, "--validation_file",
            validation_file, "--do_train", "--do_eval", "--max_seq_length", 32, "--max_steps", 4, "--learning_rate",
            "1e-2", "--train_adapter", *flags, script=script,
        )  # fmt: skip

    return call


@pytest.fixture
def evaluate(run, validation_file, tmp_path):
    """`evaluate(folder, script, name, *flags)`: the same evaluation as at the end of `train`, of another model."""

    def call(folder, script, name: str, *flags) -> dict:
        data = ["--validation_file", validation_file, "--do_eval", "--max_seq_length", 32]
        return run(tmp_path / name, "--model_name_or_path", folder, *data, *flags, script=script)

    return call


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trained_weights(output_dir) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "adapter.safetensors")


MATRIX = [
    *[
        ("gpt2", config)
        for config in ("seq_bn", "lora", "prefix_tuning", "compacter++[phm_dim=1]", "mam", "seq_bn_inv")
    ],
    *[("llama", config) for config in ("double_seq_bn[reduction_factor=8]", "lora", "ia3", "loreft", "prefix_tuning")],
    *[("bert", config) for config in ("seq_bn", "lora", "prefix_tuning", "prompt_tuning", "unipelt", "seq_bn_inv")],
    *[("roberta", config) for config in ("par_bn", "ia3", "loreft", "seq_bn|lora")],
    *[("xlnet", config) for config in ("seq_bn", "double_seq_bn", "par_bn")],
]


@pytest.mark.parametrize(("model_type", "config"), MATRIX)
def test_train_save_reload(model_type, config, base, train, evaluate, tmp_path):
    """Training changes the loss; the base, whose file is unchanged, has that loss with the saved adapter."""
    folder, script = base(model_type), SCRIPTS[model_type]
    before = digest(folder / "model.safetensors")
    results = train(folder, script, "out", "--adapter_config", config)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    plain = evaluate(folder, script, "plain")
    loaded = evaluate(folder, script, "loaded", "--load_adapter", tmp_path / "out")
    assert abs(results["eval_loss"] - plain["eval_loss"]) > 1e-4
    assert loaded["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
    assert digest(folder / "model.safetensors") == before


@pytest.mark.parametrize("config", ["seq_bn", "lora", "prefix_tuning"])
def test_two_losses_with_one_adapter(config, run, masked_tokenizer, tmp_path):
    """run_pretraining keeps both heads; the reloaded adapter has the same two losses."""
    for name, seed in (("train", 0), ("validation", 1)):
        lines = make_lines(60, seed)
        documents = ["\n".join(lines[start : start + 6]) for start in range(0, 60, 6)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents))
    folder = tmp_path / "base"
    BertForPreTraining(make_bert(len(masked_tokenizer)).config).save_pretrained(folder)
    masked_tokenizer.save_pretrained(folder)
    flags = ["--model_name_or_path", folder, "--validation_file", tmp_path / "validation.txt", "--max_seq_length", 32]
    adapter = ["--train_adapter", "--adapter_config", config, "--train_file", tmp_path / "train.txt", "--max_steps", 4]
    more = ["--do_train", "--do_eval", "--learning_rate", "1e-2"]
    trained = run(tmp_path / "out", *flags, *adapter, *more, script=run_pretraining)
    load = ["--load_adapter", tmp_path / "out", "--do_eval"]
    loaded = run(tmp_path / "loaded", *flags, *load, script=run_pretraining)
    plain = run(tmp_path / "plain", *flags, "--do_eval", script=run_pretraining)
    for key in ("eval_loss", "mlm_loss", "nsp_loss"):
        assert loaded[key] == pytest.approx(trained[key], abs=1e-6)
        assert abs(plain[key] - trained[key]) > 1e-4


@pytest.mark.parametrize("model_type", sorted(SCRIPTS))
def test_untrained_adapter_changes_nothing(model_type, base, evaluate):
    """The model keeps its own head: with an adapter that starts as the identity, its loss is the same."""
    folder, script = base(model_type), SCRIPTS[model_type]
    plain = evaluate(folder, script, "plain")
    for config in IDENTITY_AT_START if model_type != "xlnet" else ("par_bn",):
        results = evaluate(folder, script, config, "--train_adapter", "--adapter_config", config)
        assert results["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-6)
    for config in ("seq_bn", "double_seq_bn"):  # initialized close to the identity
        results = evaluate(folder, script, config, "--train_adapter", "--adapter_config", config)
        assert results["eval_loss"] == pytest.approx(plain["eval_loss"], abs=5e-3)


def watch_training(monkeypatch, script) -> dict:
    """A dict that gets the model that is trained, and its weights before training."""
    seen = {}

    class Watched(script.LMTrainer):
        def train(self, *args, **kwargs):
            seen["model"] = self.model
            seen["before"] = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
            return super().train(*args, **kwargs)

    monkeypatch.setattr(script, "LMTrainer", Watched)
    return seen


@pytest.mark.parametrize("model_type", sorted(SCRIPTS))
def test_only_the_adapter_is_trained(model_type, base, train, monkeypatch, caplog):
    """Base and head stay bit-equal, every weight of the adapter changes, and the logged number is right."""
    caplog.set_level("INFO", "utils")
    seen = watch_training(monkeypatch, SCRIPTS[model_type])
    train(base(model_type), SCRIPTS[model_type], "out", "--adapter_name", "mine")
    num_trained = 0
    for name, weight in seen["model"].named_parameters():
        is_adapter = ".adapters.mine." in name
        assert torch.equal(weight, seen["before"][name]) != is_adapter, name
        assert weight.requires_grad == is_adapter
        num_trained += is_adapter * weight.numel()
    assert f'adapter "mine": training {num_trained:,} of ' in caplog.text
    assert not [record.message for record in caplog.records if record.levelname == "WARNING"]


# For each (name that begins with the kind of model, code of a README.md, text file), runs the code in the folder where
# its names are those of folders, and prints the loss of the model that it gives.
EVALUATE_SNIPPETS = """
import json
import os
import sys
import numpy as np
import torch
from utils.examples.causal_collator import CausalLMCollator
from utils.examples.masked_collator import MaskedLMCollator
from utils.examples.permutation_collator import PermutationLMCollator
from utils.models.factorization_order import use_factorization_order
from utils.tokens.tokenizer import special_token_affixes

os.chdir(sys.argv[2])
for name, snippet, text_file in json.loads(sys.argv[1]):
    kind, names = name.split("-")[0], {}
    exec(snippet, names)
    model, tokenizer = names["model"].eval(), names["tokenizer"]
    lines = open(text_file).read().splitlines(keepends=True)
    ids = sum((tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines), [])
    first, last = ([], []) if kind == "gpt2" else special_token_affixes(tokenizer)
    size = 32 - len(first) - len(last)
    collators = {"bert": MaskedLMCollator, "xlnet": PermutationLMCollator}
    use_factorization_order(model)
    nll, targets = 0.0, 0
    for index, start in enumerate(range(0, len(ids), size)):
        example = {"input_ids": np.array(first + ids[start : start + size] + last), "index": index, "epoch": 0}
        batch = CausalLMCollator(tokenizer)([example]) if kind == "gpt2" else collators[kind](tokenizer, 42)([example])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits.double()
        if kind == "gpt2":
            logits, labels = logits[:, :-1], labels[:, 1:]
        nll += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        targets += (labels != -100).sum().item()
    print()
    print("loss", name, nll / targets)
"""


def test_snippet_of_the_card_loads_the_model(base, train, validation_file, tmp_path):
    """In a new process, in plain PyTorch: the same loss as at the end of training."""
    expected, jobs = {}, []
    for model_type, config in (("gpt2", "prefix_tuning"), ("gpt2", "lora"), ("bert", "seq_bn"), ("xlnet", "seq_bn")):
        name = f"{model_type}-{config}"
        results = train(base(model_type), SCRIPTS[model_type], name, "--adapter_config", config)
        expected[name] = results["eval_loss"]
        card = ModelCard.load(tmp_path / name / "README.md")
        assert str(tmp_path) not in card.content
        assert card.data.library_name == "adapters"
        assert card.data.base_model is None  # it is a folder, which the Hub would reject here
        snippet = re.search(r"```python\n(.*?)```", card.content, re.DOTALL).group(1)
        assert "init_xlnet" in snippet if model_type == "xlnet" else "adapters.init(model)" in snippet
        jobs.append((name, snippet, str(validation_file)))
    printed = run_python("-c", EVALUATE_SNIPPETS, json.dumps(jobs), tmp_path, PYTHONPATH=str(ROOT)).stdout
    *used, rest = re.split(r"^loss .*\n", printed, flags=re.MULTILINE)
    assert rest == ""
    for text, prompt in zip(used, ("The", "The", "0.", "Once upon a time"), strict=True):
        assert text.startswith(prompt) and len(text) > len(prompt) + 20  # generated, or the guesses for a mask
    losses = {name: float(loss) for name, loss in re.findall(r"^loss (\S+) (\S+)$", printed, re.MULTILINE)}
    assert losses == pytest.approx(expected, abs=1e-5)


def test_model_from_scratch_is_saved_with_its_adapter(run, evaluate, train_file, validation_file, tmp_path):
    """Without its random base, the adapter would be useless."""
    results = run(
        tmp_path / "out", "--model_type", "gpt2", "--train_tokenizer", "bpe", "--vocab_size", 300,
        "--config_overrides", "n_layer=2,n_embd=16,n_head=2", "--train_file", train_file, "--validation_file",
        validation_file, "--block_size", 32, "--max_steps", 3, "--learning_rate", "1e-2", "--train_adapter",
    )  # fmt: skip
    loaded = evaluate(tmp_path / "out", run_clm, "loaded", "--load_adapter", tmp_path / "out")
    assert loaded["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
    without = evaluate(tmp_path / "out", run_clm, "without")
    assert abs(without["eval_loss"] - results["eval_loss"]) > 1e-4
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert not any("adapters" in name for name in weights)
    snippet = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL).group(1)
    assert ".from_pretrained(folder)" in snippet


def test_new_head_is_trained_and_saved(base, train, evaluate, masked_tokenizer, tmp_path):
    """The checkpoint has no head, and the adapter would be useless without it."""
    folder = tmp_path / "encoder"
    BertModel(make_bert(len(masked_tokenizer)).config).save_pretrained(folder)
    masked_tokenizer.save_pretrained(folder)
    results = train(folder, run_mlm, "out")
    saved = load_file(tmp_path / "out" / "model_weights.safetensors")
    assert {name.split(".")[0] for name in saved} == {"cls"}
    loaded = evaluate(folder, run_mlm, "loaded", "--load_adapter", tmp_path / "out")
    assert loaded["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
    assert "model_weights.safetensors" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("model_type", ["gpt2", "roberta"])
def test_embeddings_of_new_tokens(model_type, base, train, evaluate, tmp_path, monkeypatch, caplog):
    """They are always saved, but trained only with --train_embeddings; without it, a log line says so."""
    folder, script = base(model_type), SCRIPTS[model_type]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zebra", "quokka"])
    tokenizer.save_pretrained(tmp_path / "larger")
    more = ["--tokenizer_name", tmp_path / "larger"]
    for name, flags in (("frozen", []), ("trained", ["--train_embeddings"])):
        caplog.clear()
        with monkeypatch.context() as patch:
            seen = watch_training(patch, script)
            results = train(folder, script, name, *more, *flags)
            weight = seen["model"].get_input_embeddings().weight
            key = next(key for key, value in seen["model"].named_parameters() if value is weight)
            assert torch.equal(weight, seen["before"][key]) == (name == "frozen")
        assert ("--train_embeddings trains them" in caplog.text) == (name == "frozen")
        loaded = evaluate(folder, script, name + "2", *more, "--load_adapter", tmp_path / name)
        assert loaded["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
        assert "resize_token_embeddings(302)" in (tmp_path / name / "README.md").read_text()


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("config", ["lora", "ia3"])
def test_merged_model_loads_without_the_library(model_type, config, base, train, evaluate, tmp_path):
    results = train(base(model_type), SCRIPTS[model_type], "out", "--adapter_config", config, "--merge_adapter")
    merged = tmp_path / "out" / "merged"
    loaded = evaluate(merged, SCRIPTS[model_type], "loaded")
    assert loaded["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-5)
    assert set(load_file(merged / "model.safetensors")) == set(load_file(base(model_type) / "model.safetensors"))
    auto_class = AutoModelForMaskedLM if model_type == "bert" else AutoModelForCausalLM
    assert not hasattr(auto_class.from_pretrained(merged), "active_adapters_setup")


def test_language_adapter_is_not_trained(base, train, evaluate, tmp_path):
    folder = base("gpt2")
    train(folder, run_clm, "lang", "--adapter_name", "english", "--adapter_config", "seq_bn_inv")
    results = train(folder, run_clm, "task", "--adapter_name", "task", "--load_lang_adapter", tmp_path / "lang")
    before, after = trained_weights(tmp_path / "lang"), trained_weights(tmp_path / "task" / "language_adapter")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    loaded = evaluate(folder, run_clm, "loaded", "--load_adapter", tmp_path / "task")  # and its language adapter
    assert loaded["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
    without = train(folder, run_clm, "alone", "--adapter_name", "task")
    assert results["eval_loss"] != without["eval_loss"]
    assert "adapters.Stack(language, task)" in (tmp_path / "task" / "README.md").read_text()


def test_training_continues_from_a_saved_adapter(base, train, tmp_path):
    folder = base("gpt2")
    first = train(folder, run_clm, "first")
    second = train(folder, run_clm, "second", "--load_adapter", tmp_path / "first", "--adapter_name", "more")
    assert second["eval_loss"] < first["eval_loss"]
    assert any(".adapters.more." in name for name in trained_weights(tmp_path / "second"))


@pytest.mark.parametrize("model_type", ["gpt2", "xlnet"])
def test_resumed_adapter_ends_as_the_uninterrupted_one(model_type, base, train, tmp_path):
    script = SCRIPTS[model_type]
    flags = ["--save_strategy", "steps", "--save_steps", 1, "--max_steps", 6, "--save_total_limit", 2]
    train(base(model_type), script, "whole", *flags)

    with killed_after_checkpoint(script, 3):
        train(base(model_type), script, "resumed", *flags)
    train(base(model_type), script, "resumed", *flags)
    whole, resumed = trained_weights(tmp_path / "whole"), trained_weights(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    checkpoints = sorted(path.name for path in (tmp_path / "resumed").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-5", "checkpoint-6"]
    # Only trained tensors have an optimizer state.
    optimizer = torch.load(tmp_path / "resumed" / "checkpoint-6" / "optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == len(whole)
    assert not (tmp_path / "resumed" / "checkpoint-6" / "model.safetensors").exists()


def test_adapter_takes_less_memory_and_disk(base, train, run, train_file, tmp_path, monkeypatch):
    """Gradients, optimizer state and checkpoint files, compared with training the whole model."""
    costs = {}
    common = ["--save_strategy", "steps", "--save_steps", 4]
    whole = ["--model_name_or_path", base("gpt2"), "--train_file", train_file, "--do_train", "--max_steps", 4]
    for name in ("adapter", "whole"):
        with monkeypatch.context() as patch:
            seen = watch_training(patch, run_clm)
            if name == "adapter":
                train(base("gpt2"), run_clm, name, *common)
            else:
                run(tmp_path / name, *whole, "--block_size", 32, *common)
        checkpoint = tmp_path / name / "checkpoint-4"
        costs[name] = {
            "gradients": sum(weight.numel() for weight in seen["model"].parameters() if weight.requires_grad),
            "optimizer": (checkpoint / "optimizer.pt").stat().st_size,
            "weights": sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")),
        }
    for key, cost in costs["whole"].items():
        assert costs["adapter"][key] < cost / 3, key


def test_best_adapter_is_loaded_at_the_end(base, train, evaluate, tmp_path):
    """The flags make the highest loss the best, so the best adapter is the first and not the last."""
    folder = base("gpt2")
    results = train(
        folder, run_clm, "out", "--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps",
        "--save_steps", 1, "--load_best_model_at_end", "--metric_for_best_model", "loss", "--greater_is_better",
    )  # fmt: skip
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    first, *_, last, _ = [log["eval_loss"] for log in state["log_history"] if "eval_loss" in log]
    assert last < first - 1e-3
    assert results["eval_loss"] == pytest.approx(first, abs=1e-6)
    loaded = evaluate(folder, run_clm, "loaded", "--load_adapter", tmp_path / "out")
    assert loaded["eval_loss"] == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("model_type", ["gpt2", "bert"])
@pytest.mark.parametrize(
    "flags",
    [
        ["--dtype", "bfloat16"],
        ["--bf16", "true", "--use_cpu"],
        ["--gradient_checkpointing"],
        ["--gradient_accumulation_steps", "2"],
    ],
    ids=lambda flags: flags[0],
)
def test_training_options(model_type, flags, base, train, evaluate, tmp_path):
    folder, script = base(model_type), SCRIPTS[model_type]
    for config in ("seq_bn", "lora"):
        results = train(folder, script, config, "--adapter_config", config, *flags)
        plain = evaluate(folder, script, config + "-plain")
        assert results["eval_loss"] < plain["eval_loss"] - 1e-3
        loaded = evaluate(folder, script, config + "2", "--load_adapter", tmp_path / config, *flags)
        assert loaded["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)


def test_the_command_of_the_manual(checkpoint, train_file, validation_file, tmp_path):
    """AdapterHub's, with a stand-in for gpt2; the output folder is there already."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    command = [
        "--model_name_or_path", checkpoint("gpt2"), "--train_file", train_file, "--validation_file",
        validation_file, "--per_device_train_batch_size", 8, "--per_device_eval_batch_size", 8, "--do_train",
        "--do_eval", "--output_dir", tmp_path / "out", "--train_adapter", "--adapter_config", "seq_bn",
        "--overwrite_output_dir", "--cache_dir", tmp_path / "cache",
    ]  # fmt: skip
    run_clm.main([str(word) for word in command])
    assert (tmp_path / "out" / "adapter.safetensors").is_file()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_parameter_without_a_gradient_is_named(base, train, monkeypatch, capsys):
    add_adapter = run_clm.add_adapter

    def add_unused_parameter(model, *args):
        adapter = add_adapter(model, *args)
        model.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
        return adapter

    monkeypatch.setattr(run_clm, "add_adapter", add_unused_parameter)
    with pytest.raises(SystemExit) as stopped:
        train(base("gpt2"), run_clm, "out")
    assert stopped.value.code == 2
    assert "no gradient reaches unused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wikitext", "wikitext"), ("Graphcore/wikipedia-bert-128", "Graphcore_wikipedia-bert-128"),
        ("a.b c", "a_b_c"), ("keys", "keys_adapter"), ("...", "adapter"), ("train", "train_adapter"),
    ],
)  # fmt: skip
def test_safe_names(name, expected):
    assert safe_name(name) == expected
    torch.nn.ModuleDict()[expected] = torch.nn.Identity()


def test_default_name_is_that_of_the_data(base, run, validation_file, tmp_path):
    path = tmp_path / "my.little corpus.txt"
    path.write_text("\n".join(make_lines(60)))
    run(
        tmp_path / "out", "--model_name_or_path", base("gpt2"), "--train_file", path, "--block_size", 32, "--do_train",
        "--max_steps", 1, "--train_adapter",
    )  # fmt: skip
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["name"] == "my_little_corpus"


@pytest.mark.parametrize(
    ("model_type", "flags", "named"),
    [
        ("gpt2", "--train_adapter --adapter_config seq_bm", ["--adapter_config seq_bm", *sorted(ADAPTER_CONFIG_MAP)]),
        ("gpt2", "--train_adapter --adapter_config seq_bn[reduction_factr=8]", ["reduction_factr"]),
        ("gpt2", "--train_adapter --adapter_config seq_bn[", ["--adapter_config seq_bn["]),
        ("gpt2", "--train_adapter --adapter_config prompt_tuning", ["prompt_tuning", "gpt2", "lora"]),
        ("gpt2", "--train_adapter --adapter_config compacter", ["--adapter_config compacter", "phm_dim"]),
        ("gpt2", "--train_adapter --merge_adapter", ["--merge_adapter", "seq_bn", "lora"]),
        ("gpt2", "--merge_adapter", ["--merge_adapter goes with --train_adapter"]),
        ("gpt2", "--train_embeddings", ["--train_embeddings goes with --train_adapter"]),
        ("gpt2", "--train_adapter --adapter_name a/b", ["--adapter_name a/b", "a_b"]),
        ("gpt2", "--train_adapter --load_adapter no/such/adapter", ["--load_adapter no/such/adapter"]),
        ("gpt2", "--do_train --load_adapter x", ["--load_adapter", "--train_adapter"]),
        ("gpt2", "--train_adapter --lang_adapter_config seq_bn", ["--lang_adapter_config", "--load_lang_adapter"]),
        ("xlnet", "--train_adapter --adapter_config lora", ["lora", "xlnet", "seq_bn, double_seq_bn, par_bn"]),
        ("xlnet", "--train_adapter --adapter_config prefix_tuning", ["prefix_tuning", "seq_bn"]),
    ],
)
def test_invalid_flags_are_refused(model_type, flags, named, base, refused, train_file, validation_file):
    data = ["--train_file", train_file, "--validation_file", validation_file, "--max_seq_length", 32]
    line = refused("--model_name_or_path", base(model_type), *data, *flags.split(), script=SCRIPTS[model_type])
    for part in named:
        assert part in line


def test_adapter_for_another_model_type_is_refused(base, train, refused, train_file, tmp_path):
    train(base("gpt2"), run_clm, "out")
    flags = ["--model_name_or_path", base("llama"), "--train_file", train_file, "--block_size", 32]
    line = refused(*flags, "--train_adapter", "--load_adapter", tmp_path / "out")
    assert "gpt2-checkpoint" in line and "llama-checkpoint" in line


def test_adapter_for_another_model_size_is_refused(checkpoint, train, refused, train_file, tmp_path):
    train(checkpoint("gpt2"), run_clm, "out")
    wider = checkpoint("gpt2", n_embd=32)
    line = refused(
        "--model_name_or_path", wider, "--train_file", train_file, "--block_size", 32, "--train_adapter",
        "--load_adapter", tmp_path / "out",
    )  # fmt: skip
    assert f"--load_adapter {tmp_path / 'out'}" in line
