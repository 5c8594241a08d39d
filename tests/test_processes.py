"""Several processes, and several machines, are as one: sharded (FSDP2), launched, stopped and restarted."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from conftest import ROOT, make_lines, make_masked_model, make_model, make_xlnet, needs_adapters, run_python
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForPreTraining

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.compat import NO_ADAPTERS_REASON
from utils.tokens.tokenizer_training import train_tokenizer
from utils.training.fsdp import layer_classes


SCRIPTS = {"clm": run_clm, "mlm": run_mlm, "plm": run_plm, "pretraining": run_pretraining}
# Runs that follow each other in the same processes. accelerate shards models on accelerators alone, but its code and
# torch's run on CPUs, too, once it takes the processes for those of GPUs.
SHARDED_JOB = """
import importlib, json, os, sys, time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from utils.config import training_arguments
from utils.tokens import token_store
from utils.training.trainer import LMTrainer

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
rank = int(os.environ["RANK"])
create_accelerator, build = LMTrainer.create_accelerator_and_postprocess, token_store._build
get_batch_samples, compute_loss = LMTrainer.get_batch_samples, LMTrainer.compute_loss
read, is_sharded = [], []

def create_accelerator_on_cpu(trainer):
    PartialState().distributed_type = DistributedType.MULTI_GPU
    create_accelerator(trainer)

def build_slowly(*args):
    with open(folder / "built.txt", "a") as file:
        file.write("built\\n")
    time.sleep(seconds if len((folder / "built.txt").read_text().split()) == 1 else 0)
    build(*args)

def note_batches(trainer, *args):
    batches, num_targets = get_batch_samples(trainer, *args)
    read.extend([trainer.state.epoch // 1, row] for batch in batches for row in batch["input_ids"].tolist())
    return batches, num_targets

def note_kind(trainer, model, *args, **kwargs):
    is_sharded.append(all(isinstance(parameter, DTensor) for parameter in model.parameters()))
    loss = compute_loss(trainer, model, *args, **kwargs)
    assert loss.dtype == torch.float32
    return loss

LMTrainer.create_accelerator_and_postprocess = create_accelerator_on_cpu
LMTrainer.get_batch_samples, LMTrainer.compute_loss = note_batches, note_kind
token_store._build = build_slowly
training_arguments.LMTrainingArguments._check_fsdp = lambda self: None
torch.cpu._is_avx512_bf16_supported = lambda: True  # slow elsewhere, but it works
for name, script, flags in json.loads((folder / "runs.json").read_text()):
    AcceleratorState._reset_state()
    GradientState._reset_state()
    importlib.import_module("run_" + script).main(["--output_dir", str(folder / name), *flags])
    (folder / f"{name}.{rank}.json").write_text(json.dumps({"read": read, "is_sharded": is_sharded}))
    read.clear(), is_sharded.clear()
"""
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_SYNC_MODULE_STATES": "false",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models with their tokenizers, and texts."""
    folder = tmp_path_factory.mktemp("processes")
    lines = make_lines(60)
    (folder / "train.txt").write_text("\n\n".join("\n".join(lines[i : i + 5]) for i in range(0, 60, 5)) + "\n")
    lines = make_lines(30, seed=1)
    (folder / "validation.txt").write_text("\n\n".join("\n".join(lines[i : i + 5]) for i in range(0, 30, 5)) + "\n")
    bert = {
        "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
        "max_position_embeddings": 64, "initializer_range": 0.3, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "pad_token_id": 1,
    }  # fmt: skip
    for script in SCRIPTS:
        options = {"add_special_tokens": script != "clm", "for_pairs": script == "pretraining"}
        tokenizer = train_tokenizer("bpe", [make_lines(200)], 300, **options)
        if script == "clm":
            model = make_model("gpt2", len(tokenizer))
        elif script == "mlm":
            model = make_masked_model("bert", len(tokenizer))
        elif script == "plm":
            model = make_xlnet(len(tokenizer))
        else:
            torch.manual_seed(0)
            config = AutoConfig.for_model("bert", **bert, vocab_size=len(tokenizer))
            model = AutoModelForPreTraining.from_config(config)
        model.save_pretrained(folder / f"{script}-model")
        tokenizer.save_pretrained(folder / f"{script}-model")
    return folder


def flags_of(folder: Path, script: str, batch_size: int) -> list[str]:
    return list(
        map(
            str,
            [
                "--model_name_or_path", folder / f"{script}-model", "--train_file", folder / "train.txt",
                "--validation_file", folder / "validation.txt", "--max_seq_length", 32, "--max_train_samples", 13,
                "--num_train_epochs", 2, "--learning_rate", "1e-2", "--optim", "sgd", "--max_grad_norm", 0,
                "--per_device_train_batch_size", batch_size, "--per_device_eval_batch_size", 7, "--bf16", "false",
                "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no", "--logging_steps", 1,
                "--do_train", "--do_eval", "--use_cpu", "--cache_dir", folder / "cache",
            ],
        )
    )  # fmt: skip


ADAPTER = ["--train_adapter", "--adapter_config", "seq_bn", "--adapter_name", "a"]
ADAM = ["--optim", "adamw_torch", "--save_strategy", "steps", "--save_steps", "1"]
SECONDS_TO_BUILD, SECONDS_TO_ANSWER = 12, 10


@pytest.fixture(scope="module")
def sharded(folder) -> Path:
    """The folder of the outputs of sharded runs in two processes."""
    runs = [(script, script, flags_of(folder, script, 4)) for script in SCRIPTS]
    runs[0][2].extend(["--ddp_timeout", str(SECONDS_TO_ANSWER)])
    kinds = {"": []}
    if NO_ADAPTERS_REASON is None:
        runs.append(("adapter", "mlm", [*flags_of(folder, "mlm", 4), *ADAPTER]))
        kinds["adapter-"] = ADAPTER
    for kind, adapter in kinds.items():
        flags = [*flags_of(folder, "clm", 4), *ADAM, *adapter]
        resume = ["--resume_from_checkpoint", str(folder / f"{kind}whole/checkpoint-3")]
        runs += [(f"{kind}whole", "clm", flags), (f"{kind}resumed", "clm", [*flags, *resume])]
    evaluation = flags_of(folder, "clm", 4)
    evaluation.remove("--do_train")
    runs.append(("evaluated", "clm", evaluation))
    runs.append(("bf16", "clm", [*flags_of(folder, "clm", 4), "--bf16", "true"]))
    (folder / "runs.json").write_text(json.dumps(runs))
    (folder / "job.py").write_text(SHARDED_JOB)
    run_python(
        "-m", "torch.distributed.run", "--nproc_per_node", 2, "--standalone", folder / "job.py", folder,
        SECONDS_TO_BUILD, PYTHONPATH=str(ROOT), **FSDP2,
    )  # fmt: skip
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def noted(folder: Path, name: str, what: str) -> list[list]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text())[what] for rank in range(2)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_sharded_processes_are_one(sharded, script, tmp_path):
    """2 sharded x 4 = 1 x 8: weights and evaluation; and transformers alone loads what is saved."""
    SCRIPTS[script].main(["--output_dir", str(tmp_path / "one"), *flags_of(sharded, script, 8)])
    one, two = results(tmp_path / "one"), results(sharded / script)
    assert all(all(flags) and flags for flags in noted(sharded, script, "is_sharded"))
    for key in one:
        if key.endswith(("loss", "perplexity", "bits_per_byte")):
            assert two[key] == pytest.approx(one[key], rel=1e-6)
        elif not re.search("runtime|per_second", key):
            assert two[key] == one[key]
    expected, saved = (load_file(path / "model.safetensors") for path in (tmp_path / "one", sharded / script))
    assert saved.keys() == expected.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    again = flags_of(sharded, script, 8)
    again[1] = str(sharded / script)
    again.remove("--do_train")
    SCRIPTS[script].main(["--output_dir", str(tmp_path / "again"), *again])
    assert results(tmp_path / "again")["eval_loss"] == pytest.approx(two["eval_loss"], abs=1e-6)


def test_each_example_is_read_by_one_process(sharded):
    """13 examples by 2 processes x 4: none is read twice to fill the last batch, and none is left out."""
    first, second = noted(sharded, "clm", "read")
    for epoch in (0, 1):
        rows = [tuple(row) for read in (first, second) for at, row in read if at == epoch]
        assert len(rows) == len(set(rows)) == 13


def test_a_long_preprocessing_is_waited_for_without_a_time_limit(sharded):
    """The other process waited longer than a collective would have; and each text is tokenized once."""
    assert SECONDS_TO_BUILD > SECONDS_TO_ANSWER
    stores = [path for path in (sharded / "cache/language_modeling").iterdir() if path.is_dir()]
    assert len((sharded / "built.txt").read_text().split()) == len(stores)


@needs_adapters
def test_sharded_adapter_is_saved_whole(sharded, tmp_path):
    run_mlm.main(["--output_dir", str(tmp_path / "one"), *flags_of(sharded, "mlm", 8), *ADAPTER])
    assert results(sharded / "adapter")["eval_loss"] == pytest.approx(results(tmp_path / "one")["eval_loss"], rel=1e-6)
    expected, saved = (load_file(path / "adapter.safetensors") for path in (tmp_path / "one", sharded / "adapter"))
    assert saved.keys() == expected.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["", pytest.param("adapter-", marks=needs_adapters)])
def test_sharded_training_resumes_exactly(sharded, kind):
    name = "adapter.safetensors" if kind else "model.safetensors"
    whole, resumed = (load_file(sharded / f"{kind}{run}" / name) for run in ("whole", "resumed"))
    for key, weight in resumed.items():
        torch.testing.assert_close(weight, whole[key], rtol=0, atol=0)
    assert results(sharded / f"{kind}resumed")["train_loss"] == pytest.approx(
        results(sharded / f"{kind}whole")["train_loss"], rel=1e-9
    )


def test_sharded_evaluation_alone(sharded, tmp_path):
    flags = flags_of(sharded, "clm", 8)
    flags.remove("--do_train")
    run_clm.main(["--output_dir", str(tmp_path / "one"), *flags])
    assert results(sharded / "evaluated")["eval_loss"] == pytest.approx(
        results(tmp_path / "one")["eval_loss"], rel=1e-6
    )


def test_sharded_sums_are_not_rounded_to_bfloat16(sharded):
    """A sum of some 600 nats has steps of 4 in bfloat16; the layers themselves are computed in it."""
    exact, mixed = results(sharded / "clm"), results(sharded / "bf16")
    assert mixed["eval_loss"] != exact["eval_loss"]
    assert mixed["eval_loss"] == pytest.approx(exact["eval_loss"], rel=2e-3)
    total = mixed["eval_loss"] * mixed["eval_tokens"]
    assert float(torch.tensor(total).bfloat16()) != pytest.approx(total, abs=1e-3)


def test_a_stack_of_layers_is_what_is_gathered_at_once():
    names = {"clm": "GPT2Block", "mlm": "BertLayer", "plm": "XLNetLayer"}
    models = {"clm": make_model("gpt2", 300), "mlm": make_masked_model("bert", 300), "plm": make_xlnet(300)}
    assert {script: layer_classes(model) for script, model in models.items()} == {k: [v] for k, v in names.items()}


# Two machines

# Each machine has a launcher and a process, which joins the other one over loopback.
MACHINE_JOB = """
import os, signal, sys
from pathlib import Path

import run_clm
from utils.tokens import token_store
from utils.training.trainer import LMTrainer

folder, dies = Path(sys.argv[1]), sys.argv[2] == "dies"
build, training_step = token_store._build, LMTrainer.training_step

def note_build(path, *args):
    with open(folder / "built.txt", "a") as file:
        file.write(f"{path.name}\\n")
    build(path, *args)

def die_in_step_4(trainer, *args):
    if dies and trainer.state.global_step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return training_step(trainer, *args)

token_store._build, LMTrainer.training_step = note_build, die_in_step_4
run_clm.main(sys.argv[3:])
"""


def two_machines(folder: Path, dies: str, *flags) -> list[tuple[int, str]]:
    """Exit code and stderr of the two launchers."""
    (folder / "job.py").write_text(MACHINE_JOB)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1, "--rdzv_backend", "c10d",
        "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "job", "--local_addr", "localhost",
    ]  # fmt: skip
    launchers = []
    for machine in range(2):
        # The one that is told so keeps the meeting place, and has rank 0.
        words = [*command, "--rdzv_conf", f"is_host={machine == 0}", folder / "job.py", folder, dies, *flags]
        launchers.append(
            subprocess.Popen(
                list(map(str, words)), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    try:
        errors = [launcher.communicate(timeout=120)[1] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    return [(launcher.returncode, error) for launcher, error in zip(launchers, errors, strict=True)]


def test_a_machine_that_dies_ends_the_job_which_goes_on_when_restarted(folder, tmp_path):
    flags = [*flags_of(folder, "clm", 4), "--save_strategy", "steps", "--save_steps", "1", "--overwrite_cache"]
    flags[flags.index("--cache_dir") + 1] = str(tmp_path / "cache")
    output = ["--output_dir", tmp_path / "two"]
    first, second = two_machines(tmp_path, "dies", *flags, *output)
    assert second[0] == -signal.SIGKILL
    assert first[0] == 1
    lines = [line for line in first[1].splitlines() if line.startswith("run_clm.py: error: ")]
    assert len(lines) == 1 and "another process of this job has ended" in lines[0] and "checkpoint" in lines[0]
    built = (tmp_path / "built.txt").read_text().split()
    assert len(built) == len(set(built)) == 2  # by one machine, in the cache that both see, though told to overwrite
    assert not (tmp_path / "two" / "model.safetensors").exists()

    again = two_machines(tmp_path, "lives", *flags, *output)
    assert [code for code, _ in again] == [0, 0], again
    assert "resuming from" in again[0][1] and "checkpoint-3" in again[0][1]
    run_clm.main(["--output_dir", str(tmp_path / "one"), *flags_of(folder, "clm", 8)])
    expected = load_file(tmp_path / "one" / "model.safetensors")
    for name, weight in load_file(tmp_path / "two" / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    built = (tmp_path / "built.txt").read_text().split()
    assert len(built) == 4 and len(set(built)) == 2  # and again by the restarted job, once


# Recipes


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.name
)
def test_accelerate_takes_the_recipe(recipe):
    """And what it makes of it is what the name says; the header has the command."""
    config = load_config_from_file(str(recipe))
    assert f"--config_file recipes/accelerate/{recipe.name}" in recipe.read_text()
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed": "DEEPSPEED"}[recipe.stem.split("_")[0]]
    assert config.distributed_type == kind
    args = launch_command_parser().parse_args(["--config_file", str(recipe), "run_clm.py"])
    if kind != "DEEPSPEED":  # which looks for the package
        args, *_ = _validate_launch_command(args)
        assert (args.num_machines > 1) == bool(re.search("two_nodes|hybrid", recipe.name))
        assert args.num_processes == 8 * args.num_machines
    if kind == "FSDP":
        assert args.fsdp_version == 2 and args.use_parallelism_config == ("hybrid" in recipe.name)
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(recipe.stem[-1])


TORCHRUN = """#!/usr/bin/env bash
trap 'echo saved >> "$FOLDER/log"; exit 143' TERM
echo "started $*" >> "$FOLDER/log"
[ "$FAILS" = 1 ] && exit 1
while true; do read -t 1 <> <(:) || true; done
"""
SRUN = """#!/usr/bin/env bash
trap 'kill -TERM $!' TERM
"$@" &
wait $!; code=$?
[ $code = 143 ] && { wait $!; code=$?; }
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && { echo machine1; echo machine2; exit; }
echo "$*" >> "$FOLDER/log"
"""


@pytest.mark.parametrize("ending", ["signal", "failure"])
def test_slurm_job_is_requeued_after_the_signal_alone(tmp_path, ending):
    """With stand-ins for Slurm's commands and torchrun."""
    for name, text in {"torchrun": TORCHRUN, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FOLDER": str(tmp_path), "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "machine[1-2]", "FAILS": str(int(ending == "failure"))}
    job = subprocess.Popen(
        ["bash", ROOT / "recipes" / "slurm" / "train.sbatch", "run_clm.py", "--flag", "two words"],
        env=os.environ | environment,
    )
    while not log.exists() or not log.read_text().endswith("\n"):
        os.sched_yield()
    if ending == "signal":
        job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == (143 if ending == "signal" else 1)
    started, *rest = log.read_text().splitlines()
    assert "--nnodes 2 --nproc_per_node 8 " in started and "machine1:29500 run_clm.py --flag two words" in started
    assert rest == (["saved", "requeue 7"] if ending == "signal" else [])
