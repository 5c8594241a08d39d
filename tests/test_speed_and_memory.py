"""What makes runs faster or smaller changes no result: compilation, batches that fit, evaluations, dry runs."""

import json
import logging
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import make_model, run_python
from scripts import SCRIPTS, flags_of, save_checkpoints, write_documents
from test_all_scripts import assert_same_weights, results_of

from utils.compat import TRANSFORMERS_5
from utils.errors import EarlyEnd
from utils.training import evaluation, utilization
from utils.training.evaluation import evaluation_batch_size
from utils.training.out_of_memory import out_of_memory_explained
from utils.training.trainer import LMTrainer
from utils.training.utilization import ModelFlops, model_flops, peak_flops


every_script = pytest.mark.parametrize("name", SCRIPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Checkpoints and text for each script; see `flags_of`."""
    folder = tmp_path_factory.mktemp("runs")
    save_checkpoints(folder)
    write_documents(folder / "train.txt", 60)
    write_documents(folder / "validation.txt", 30, seed=1)
    return folder


@pytest.fixture
def train(folder, tmp_path):
    """`train("clm", "first", *flags)`: run the script into a folder of that name and return it."""

    def call(name: str, output: str, *flags) -> Path:
        SCRIPTS[name].main(["--output_dir", str(tmp_path / output), *flags_of(folder, name, *map(str, flags))])
        return tmp_path / output

    return call


@pytest.fixture
def evaluated(monkeypatch) -> list[int]:
    """The steps at which an evaluation was made."""
    steps = []
    evaluate_set = LMTrainer._evaluate_set
    monkeypatch.setattr(
        LMTrainer,
        "_evaluate_set",
        lambda self, *args: steps.append(self.state.global_step) or evaluate_set(self, *args),
    )
    return steps


# Compilation


@every_script
def test_compiled_training_is_the_same(name, train):
    """One graph for the whole model and, since batches have one shape, one compilation."""
    plain = train(name, "plain", "--per_device_train_batch_size", 4)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    flags = ["--per_device_train_batch_size", 4, "--torch_compile", "--torch_compile_backend", "aot_eager"]
    compiled = train(name, "compiled", *flags)
    assert results_of(compiled)["train_loss"] == pytest.approx(results_of(plain)["train_loss"], rel=1e-6)
    for count in ("train_tokens", "train_samples", "eval_samples"):
        assert results_of(compiled)[count] == results_of(plain)[count]
    assert_same_weights(compiled, plain, tolerance=1e-5)
    assert torch._dynamo.utils.counters["graph_break"] == {}
    # XLNet's query stream has as many rows as the example with the most targets, so one more graph takes any number.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (2 if name == "plm" else 1)


# Memory


@every_script
def test_smaller_batches_keep_the_global_batch(name, train, monkeypatch, caplog):
    """Batches of 8, and of 4, do not fit."""
    expected = train(name, "expected", "--per_device_train_batch_size", 8)
    compute_loss = LMTrainer.compute_loss

    def little_memory(self, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LMTrainer, "compute_loss", little_memory)
    found = train(name, "found", "--per_device_train_batch_size", 8, "--auto_find_batch_size")
    assert "--per_device_train_batch_size 2 --gradient_accumulation_steps 4" in caplog.text
    assert results_of(found)["train_loss"] == pytest.approx(results_of(expected)["train_loss"], rel=1e-5)
    assert_same_weights(found, expected, tolerance=1e-5)


def test_out_of_memory_ends_in_one_line(train, monkeypatch, capsys):
    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LMTrainer, "compute_loss", no_memory)
    with pytest.raises(SystemExit) as stopped:
        train("clm", "out", "--per_device_train_batch_size", 8)
    assert stopped.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    flags = ["--per_device_train_batch_size 4", "--gradient_checkpointing", "--block_size"]
    places = [line.index(flag) for flag in flags]
    assert places == sorted(places)
    assert "--gradient_accumulation_steps 2" in line


@pytest.mark.parametrize(("size", "advice"), [(8, "--per_device_eval_batch_size 4"), (None, "--per_device_eval_")])
def test_out_of_memory_in_an_evaluation(size, advice):
    args = SimpleNamespace(eval_batch_size=size, train_batch_size=8, gradient_accumulation_steps=1)
    with pytest.raises(EarlyEnd, match=advice), out_of_memory_explained(args, is_training=False):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes")
    with pytest.raises(RuntimeError, match="sizes"), out_of_memory_explained(args, is_training=False):
        raise RuntimeError("sizes do not match")


# Evaluation


def test_evaluation_batches_follow_the_memory(monkeypatch):
    model = make_model("gpt2", 300)
    accelerator = SimpleNamespace(gather=lambda tensor: tensor, unwrap_model=lambda model: model)
    args = SimpleNamespace(eval_batch_size=None, world_size=1, device=torch.device("cpu"))
    memory = SimpleNamespace(available=2**40)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert evaluation_batch_size(model, 64, args, accelerator) == evaluation.MAX_EVALUATION_TOKENS["cpu"] // 64
    sizes = []
    for memory.available in (2**24, 2**22, 2**10):
        sizes.append(evaluation_batch_size(model, 64, args, accelerator))
    assert evaluation.MAX_EVALUATION_TOKENS["cpu"] // 64 > sizes[0] > sizes[1] > sizes[2] == 1
    args.eval_batch_size = 3
    assert evaluation_batch_size(model, 64, args, accelerator) == 3


@every_script
def test_evaluation_without_a_batch_size(name, train, folder):
    """All examples at once, or 7 at a time."""
    flags = flags_of(folder, name)
    at = flags.index("--per_device_eval_batch_size")
    output = folder / f"{name}-without-batch-size"
    SCRIPTS[name].main(["--output_dir", str(output), *flags[:at], *flags[at + 2 :]])
    results, expected = results_of(output), results_of(train(name, "expected"))
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert results["eval_accuracy" if name != "pretraining" else "mlm_accuracy"] == pytest.approx(
        expected["eval_accuracy" if name != "pretraining" else "mlm_accuracy"]
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_last_evaluation_is_not_repeated(steps, train, evaluated):
    """The last of 4 updates is evaluated in the training if it evaluates every update, but not every third one."""
    flags = ["--per_device_train_batch_size", 7, "--eval_strategy", "steps", "--eval_steps", steps]
    output = train("clm", "out", *flags)
    assert evaluated == ([1, 2, 3, 4] if steps == 1 else [3, 4])
    state = json.loads((output / "trainer_state.json").read_text())
    last = [log for log in state["log_history"] if "eval_loss" in log][-1]
    results = json.loads((output / "eval_results.json").read_text())
    assert last["step"] == 4 and results["eval_loss"] == last["eval_loss"]


def test_best_models_evaluation_is_not_repeated(train, evaluated):
    """With a learning rate that makes every step worse, the first one is the best."""
    flags = ["--per_device_train_batch_size", 7, "--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy"]
    flags += ["steps", "--save_steps", 1, "--load_best_model_at_end", "--learning_rate", 10]
    output = train("clm", "out", *flags)
    logs = json.loads((output / "trainer_state.json").read_text())["log_history"]
    losses = {log["step"]: log["eval_loss"] for log in logs if "eval_loss" in log}
    results = results_of(output)
    assert evaluated == [1, 2, 3, 4]
    assert results["best_step"] == min(losses, key=losses.get)
    assert results["eval_loss"] == min(losses.values())


# Dry runs


@every_script
def test_dry_run_writes_nothing(name, train, capsys):
    output = train(name, "out", "--per_device_train_batch_size", 4, "--dry_run", "--report_to", "tensorboard")
    assert not output.exists()
    printed = capsys.readouterr().out
    for label in ("parameters", "steps", "tokens", "seconds per step", "checkpoint mb", "peak memory mb"):
        assert label in printed


@pytest.mark.parametrize(("batch_size", "accumulation"), [(20, 1), (5, 2), (20, 4)])
def test_dry_run_of_an_epoch_with_less_than_two_updates(batch_size, accumulation, train, capsys):
    """13 examples: an update, or one and a part of another, an epoch."""
    flags = ["--per_device_train_batch_size", batch_size, "--gradient_accumulation_steps", accumulation, "--dry_run"]
    train("clm", "out", *flags)
    assert "seconds per step" in capsys.readouterr().out


def test_dry_run_predicts_the_run(folder, tmp_path):
    """The peak of a following run within 15%, the steps, and the size of a checkpoint."""
    code = "import json, sys, run_clm; print(json.dumps(run_clm.main(sys.argv[1:])))"
    flags = flags_of(folder, "clm", "--output_dir", tmp_path / "out", "--per_device_train_batch_size", 4)
    flags += ["--save_strategy", "steps", "--save_steps", "8", "--optim", "adamw_torch"]
    runs = [run_python("-c", code, *flags, *more).stdout.splitlines()[-1] for more in (["--dry_run"], [])]
    predicted, results = map(json.loads, runs)
    assert predicted["peak_memory_mb"] == pytest.approx(results["peak_memory_mb"], rel=0.15)
    assert predicted["steps"] == 8
    checkpoint = tmp_path / "out" / "checkpoint-8"
    size = sum((checkpoint / file).stat().st_size for file in ("model.safetensors", "optimizer.pt")) / 1e6
    assert predicted["checkpoint_mb"] == pytest.approx(size, rel=0.25)  # the files have headers, the model is tiny


# Utilization


def test_peaks_are_found_by_name():
    assert peak_flops("NVIDIA A100-SXM4-80GB", is_float16=False) == 312e12
    assert peak_flops("NVIDIA H100 PCIe", is_float16=False) == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3", is_float16=False) == 989e12
    assert peak_flops("Tesla T4", is_float16=True) == 65e12
    assert peak_flops("Tesla T4", is_float16=False) is None
    assert peak_flops("NVIDIA A1000", is_float16=False) is None


def test_flops_of_gpt2(monkeypatch):
    """GPT-2 124M at 1,024 tokens: 0.855 GFLOP a token, as nanoGPT counts."""
    from transformers import AutoModelForCausalLM, GPT2Config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config())
    monkeypatch.setattr(utilization.torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    args = SimpleNamespace(device=torch.device("cuda"), bf16=True, fp16=False, world_size=2)
    flops = model_flops(model, 1024, args)
    assert flops.per_token + flops.per_target == pytest.approx(0.855e9, rel=2e-3)
    assert flops.peak == 2 * 312e12
    args.bf16 = False
    assert model_flops(model, 1024, args) is None
    assert ModelFlops(6, 2, 100).utilization(tokens=10, targets=5, seconds=2) == 0.35


# Mixed precision


def test_weights_are_cast_once_per_update(train, monkeypatch):
    """For four micro-batches, each parameter of the linear layers is cast once, and the results are the same."""
    num_copies = []
    update = LMTrainer.update

    def count_copies(self, *args):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            result = update(self, *args)
        num_copies.append(sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy"))
        return result

    monkeypatch.setattr(LMTrainer, "update", count_copies)
    flags = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4, "--bf16", "true"]
    kept = train("clm", "kept", *flags)
    first_count = num_copies[0]
    num_copies.clear()
    monkeypatch.setattr("utils.training.training_loop.weights_cast_once", lambda args: torch.enable_grad())
    assert_same_weights(train("clm", "again", *flags), kept)
    assert num_copies[0] - first_count >= 3 * 8


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_cost_of_dropout_is_logged(dropout, run, checkpoint, folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, "utils")
    flags = ["--model_name_or_path", checkpoint("gpt2", attn_pdrop=dropout), "--train_file", folder / "train.txt"]
    run(tmp_path / "out", *flags, "--do_train", "--max_steps", 1, "--block_size", 16)
    assert caplog.text.count("rules out the flash kernel") == (1 if dropout else 0)


# Mixtures of experts


def test_loss_that_balances_experts(run, tokenizer, folder, tmp_path):
    """It is logged apart, is part of the gradient, and not of the loss or the perplexity."""
    sizes = "num_hidden_layers=1,hidden_size=16,intermediate_size=32,num_attention_heads=2,num_key_value_heads=2"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    common = ["--model_type", "mixtral", "--tokenizer_name", tmp_path / "tokenizer", "--block_size", 16]
    common += ["--train_file", folder / "train.txt", "--validation_file", folder / "validation.txt", "--max_steps", 2]
    results = {}
    for name, more in {"without": "", "with": ",output_router_logits=true,router_aux_loss_coef=10"}.items():
        flags = [*common, "--config_overrides", sizes + ",num_local_experts=4" + more, "--logging_steps", 1]
        results[name] = run(tmp_path / name, *flags, "--learning_rate", 0.01)
    assert "train_aux_loss" not in results["without"]
    # 2 of 4 experts: at least 10 x 2, which it is when they are used alike.
    assert 20 <= results["with"]["train_aux_loss"] < 40
    logs = [
        [
            log
            for log in json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
            if "loss" in log
        ]
        for name in ("without", "with")
    ]
    assert logs[0][0]["loss"] == logs[1][0]["loss"] and "aux_loss" in logs[1][0]  # the same weights
    assert logs[0][0]["grad_norm"] < logs[1][0]["grad_norm"]
    assert logs[0][1]["loss"] != logs[1][1]["loss"]
    assert results["with"]["eval_loss"] < 10


# Liger's kernels


@pytest.fixture
def liger(monkeypatch):
    """A package in the place of liger-kernel that knows Llama; the fixture is a list of what was applied."""
    applied = []
    transformers_part = types.ModuleType("liger_kernel.transformers")
    transformers_part._apply_liger_kernel_to_instance = lambda model, **options: applied.append(options)
    patches = types.ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    for module in (types.ModuleType("liger_kernel"), transformers_part, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    where_applied = "transformers.integrations.liger" if TRANSFORMERS_5 else "transformers.trainer"
    for place in ("utils.config.rehearsal", where_applied):
        monkeypatch.setattr(f"{place}.is_liger_kernel_available", lambda: True)
    return applied


def test_liger_replaces_layers_but_not_the_loss(liger, run, checkpoint, folder, tmp_path):
    flags = ["--model_name_or_path", checkpoint("llama"), "--train_file", folder / "train.txt", "--do_train"]
    run(tmp_path / "out", *flags, "--block_size", 16, "--max_steps", 1, "--use_liger_kernel")
    assert liger == [{"cross_entropy": False, "fused_linear_cross_entropy": False}]


def test_liger_without_kernels_for_the_model(liger, refused, checkpoint, folder):
    flags = ["--model_name_or_path", checkpoint("gpt2"), "--train_file", folder / "train.txt", "--do_train"]
    assert "no kernels for gpt2" in refused(*flags, "--block_size", 16, "--use_liger_kernel")


def test_ligers_loss_is_refused(liger, refused, checkpoint, folder):
    flags = ["--model_name_or_path", checkpoint("llama"), "--train_file", folder / "train.txt", "--do_train"]
    config = '{"fused_linear_cross_entropy": true}'
    line = refused(*flags, "--block_size", 16, "--use_liger_kernel", "--liger_kernel_config", config)
    assert "fused_linear_cross_entropy" in line
