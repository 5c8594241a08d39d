"""Several processes, or several machines, give the results of one: sharded (FSDP2), launched, and restarted."""

import json
import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from conftest import ROOT, make_masked_model, make_model, make_xlnet, needs_adapters
from processes import free_port, torchrun
from safetensors.torch import load_file
from scripts import ADAPTER, SCRIPTS, flags_of, save_checkpoints, write_documents

import run_clm
import run_mlm
from utils.compat import TRANSFORMERS_5
from utils.training.fsdp import layer_classes


# Runs that follow each other in the same processes. accelerate only shards models on accelerators, but its code and
# torch's also run on CPUs, once it believes that the processes have GPUs.
SHARDED_JOB = """
import importlib, json, os, sys, time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from utils.config import training_arguments
from utils.training.trainer import LMTrainer

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
rank = int(os.environ["RANK"])
create_accelerator, compute_loss = LMTrainer.create_accelerator_and_postprocess, LMTrainer.compute_loss
read, is_sharded = [], []

def create_accelerator_on_cpu(trainer):
    PartialState().distributed_type = DistributedType.MULTI_GPU
    create_accelerator(trainer)

def note_batch(trainer, model, inputs, *args, **kwargs):
    read.extend([int(trainer.state.epoch), row] for row in inputs["input_ids"].tolist())
    is_sharded.append(all(isinstance(parameter, DTensor) for parameter in model.parameters()))
    loss = compute_loss(trainer, model, inputs, *args, **kwargs)
    assert loss.dtype == torch.float32
    return loss

def slow_text(row):
    with open(os.environ["TOKENIZED"], "a") as file:
        time.sleep(0 if file.tell() else float(os.environ["SECONDS"]))
        file.write(row["text"].strip() + "\\n")
    return row["text"]

LMTrainer.create_accelerator_and_postprocess, LMTrainer.compute_loss = create_accelerator_on_cpu, note_batch
training_arguments.LMTrainingArguments._check_fsdp = lambda self: None
torch.cpu._is_avx512_bf16_supported = lambda: True  # slow elsewhere, but it works
os.environ["SECONDS"], os.environ["TOKENIZED"] = str(seconds), str(folder / "tokenized.txt")
for name, script, flags in json.loads((folder / "runs.json").read_text()):
    AcceleratorState._reset_state()
    GradientState._reset_state()
    script = importlib.import_module("run_" + script)
    script.document_text = slow_text
    script.main(["--output_dir", str(folder / name), *flags])
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
    write_documents(folder / "train.txt", 60)
    write_documents(folder / "validation.txt", 30, seed=1)
    save_checkpoints(folder)
    return folder


def flags_for(folder: Path, name: str, batch_size: int, *more: str) -> list[str]:
    return flags_of(folder, name, "--per_device_train_batch_size", batch_size, *more)


ADAM = ["--optim", "adamw_torch", "--save_strategy", "steps", "--save_steps", "1"]
SECONDS_TO_BUILD, SECONDS_TO_ANSWER = 12, 10


@pytest.fixture(scope="module")
def sharded(folder) -> Path:
    """The folder with the outputs of sharded runs, all in one job of two processes."""
    runs = [(f"{script}-sharded", script, flags_for(folder, script, 4)) for script in SCRIPTS]
    runs[0][2].extend(["--ddp_timeout", str(SECONDS_TO_ANSWER)])
    kinds = {"": []}
    if not TRANSFORMERS_5:
        runs.append(("adapter", "mlm", flags_for(folder, "mlm", 4, *ADAPTER)))
        kinds["adapter-"] = ADAPTER
    for kind, adapter in kinds.items():
        flags = flags_for(folder, "clm", 4, *ADAM, *adapter)
        resume = ["--resume_from_checkpoint", str(folder / f"{kind}whole/checkpoint-3")]
        runs += [(f"{kind}whole", "clm", flags), (f"{kind}resumed", "clm", [*flags, *resume])]
    evaluation = flags_for(folder, "clm", 4)
    evaluation.remove("--do_train")
    runs.append(("evaluated", "clm", evaluation))
    runs.append(("bf16", "clm", flags_for(folder, "clm", 4, "--bf16", "true")))
    (folder / "runs.json").write_text(json.dumps(runs))
    (folder / "job.py").write_text(SHARDED_JOB)
    job = torchrun(
        folder / "log", "--nproc_per_node", 2, "--standalone", folder / "job.py", folder, SECONDS_TO_BUILD,
        PYTHONPATH=str(ROOT), **FSDP2,
    )  # fmt: skip
    assert job.wait(300) == [0], job.output
    return folder


def results_of(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def lines_of(path: Path) -> Counter:
    return Counter(line for line in path.read_text().splitlines() if line)


def lines_of_texts(folder: Path) -> Counter:
    return lines_of(folder / "train.txt") + lines_of(folder / "validation.txt")


def noted(folder: Path, name: str, what: str) -> list[list]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text())[what] for rank in range(2)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_sharded_processes_are_one(sharded, script, tmp_path):
    """2 sharded x 4 = 1 x 8: the same weights and evaluation, and the saved model loads without sharding."""
    SCRIPTS[script].main(["--output_dir", str(tmp_path / "one"), *flags_for(sharded, script, 8)])
    saved_in = sharded / f"{script}-sharded"
    one, two = results_of(tmp_path / "one"), results_of(saved_in)
    assert all(all(flags) and flags for flags in noted(sharded, saved_in.name, "is_sharded"))
    for key in one:
        if key.endswith(("loss", "perplexity", "bits_per_byte")):
            assert two[key] == pytest.approx(one[key], rel=1e-6)
        elif not re.search("runtime|per_second|memory", key):
            assert two[key] == one[key]
    expected, saved = (load_file(path / "model.safetensors") for path in (tmp_path / "one", saved_in))
    assert saved.keys() == expected.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    again = flags_for(sharded, script, 8)
    again[1] = str(saved_in)
    again.remove("--do_train")
    SCRIPTS[script].main(["--output_dir", str(tmp_path / "again"), *again])
    assert results_of(tmp_path / "again")["eval_loss"] == pytest.approx(two["eval_loss"], abs=1e-6)


def test_each_example_is_read_by_one_process(sharded):
    """13 examples for 2 processes x 4: none is read twice to fill the last batch, and none is skipped."""
    first, second = noted(sharded, "clm-sharded", "read")
    for epoch in (0, 1):
        rows = [tuple(row) for read in (first, second) for at, row in read if at == epoch]
        assert len(rows) == len(set(rows)) == 13


def test_waiting_for_preprocessing_has_no_time_limit(sharded):
    """The other process waited longer than a collective would have, and all runs together tokenized each line 3 times.

    That is, for clm, for mlm and plm, which have the same tokenizer, and for pretraining.
    """
    assert SECONDS_TO_BUILD > SECONDS_TO_ANSWER
    assert lines_of(sharded / "tokenized.txt") == {line: 3 * count for line, count in lines_of_texts(sharded).items()}


@needs_adapters
def test_sharded_adapter_is_saved_whole(sharded, tmp_path):
    run_mlm.main(["--output_dir", str(tmp_path / "one"), *flags_for(sharded, "mlm", 8, *ADAPTER)])
    assert results_of(sharded / "adapter")["eval_loss"] == pytest.approx(
        results_of(tmp_path / "one")["eval_loss"], rel=1e-6
    )
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
    assert results_of(sharded / f"{kind}resumed")["train_loss"] == pytest.approx(
        results_of(sharded / f"{kind}whole")["train_loss"], rel=1e-9
    )


def test_sharded_evaluation_alone(sharded, tmp_path):
    flags = flags_for(sharded, "clm", 8)
    flags.remove("--do_train")
    run_clm.main(["--output_dir", str(tmp_path / "one"), *flags])
    assert results_of(sharded / "evaluated")["eval_loss"] == pytest.approx(
        results_of(tmp_path / "one")["eval_loss"], rel=1e-6
    )


def test_sharded_sums_are_not_rounded_to_bfloat16(sharded):
    """Near 600, bfloat16 has steps of 4. Only the layers are computed in it, not the sum of the losses."""
    exact, mixed = results_of(sharded / "clm-sharded"), results_of(sharded / "bf16")
    assert mixed["eval_loss"] != exact["eval_loss"]
    assert mixed["eval_loss"] == pytest.approx(exact["eval_loss"], rel=2e-3)
    total = mixed["eval_loss"] * mixed["eval_tokens"]
    assert float(torch.tensor(total).bfloat16()) != pytest.approx(total, abs=1e-3)


def test_layers_are_gathered_one_at_a_time():
    names = {"clm": "GPT2Block", "mlm": "BertLayer", "plm": "XLNetLayer"}
    models = {"clm": make_model("gpt2", 300), "mlm": make_masked_model("bert", 300), "plm": make_xlnet(300)}
    assert {script: layer_classes(model) for script, model in models.items()} == {k: [v] for k, v in names.items()}


# Two machines

# Each machine has a launcher and a process, which joins the other one over loopback.
MACHINE_JOB = """
import os, signal, sys

import run_clm
from utils.training.trainer import LMTrainer

dies, training_step = sys.argv[1] == "dies", LMTrainer.training_step

def note_text(row):
    with open(os.environ["TOKENIZED"], "a") as file:
        file.write(row["text"].strip() + "\\n")
    return row["text"]

def die_in_step_4(trainer, *args):
    if dies and trainer.state.global_step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return training_step(trainer, *args)

run_clm.document_text, LMTrainer.training_step = note_text, die_in_step_4
run_clm.main(sys.argv[2:])
"""


def two_machines(folder: Path, dies: str, *flags) -> list[tuple[int, str]]:
    """Exit code and output of the two launchers."""
    (folder / "job.py").write_text(MACHINE_JOB)
    rendezvous = [
        "--nnodes", 2, "--nproc_per_node", 1, "--rdzv_backend", "c10d", "--rdzv_endpoint",
        f"localhost:{free_port()}", "--rdzv_id", "job", "--local_addr", "localhost",
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(ROOT), "TOKENIZED": str(folder / "tokenized.txt")}
    launchers = []
    for machine in range(2):
        # The machine that hosts the rendezvous has rank 0.
        words = [*rendezvous, "--rdzv_conf", f"is_host={machine == 0}", folder / "job.py", dies, *flags]
        launchers.append(torchrun(folder / f"{dies}-{machine}.log", *words, **environment))
    codes = [launcher.wait(120)[0] for launcher in launchers]
    return [(code, launcher.output) for code, launcher in zip(codes, launchers, strict=True)]


def test_job_ends_when_a_machine_dies_and_resumes_when_restarted(folder, tmp_path):
    flags = flags_for(folder, "clm", 4, "--save_strategy", "steps", "--save_steps", "1", "--overwrite_cache")
    texts = lines_of_texts(folder)
    flags[flags.index("--cache_dir") + 1] = str(tmp_path / "cache")
    output = ["--output_dir", tmp_path / "two"]
    first, second = two_machines(tmp_path, "dies", *flags, *output)
    assert second[0] == -signal.SIGKILL
    assert first[0] == 1
    lines = [line for line in first[1].splitlines() if line.startswith("run_clm.py: error: ")]
    assert len(lines) == 1 and "another process of this job has ended" in lines[0] and "checkpoint" in lines[0]
    assert lines_of(tmp_path / "tokenized.txt") == texts  # by one machine, though --overwrite_cache is given to both
    assert not (tmp_path / "two" / "model.safetensors").exists()

    again = two_machines(tmp_path, "lives", *flags, *output)
    assert [code for code, _ in again] == [0, 0], again
    assert "resuming from" in again[0][1] and "checkpoint-3" in again[0][1]
    run_clm.main(["--output_dir", str(tmp_path / "one"), *flags_for(folder, "clm", 8)])
    expected = load_file(tmp_path / "one" / "model.safetensors")
    for name, weight in load_file(tmp_path / "two" / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    assert lines_of(tmp_path / "tokenized.txt") == texts + texts  # once more by the restarted job


# Recipes


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.name
)
def test_accelerate_takes_the_recipe(recipe):
    """accelerate reads the recipe as its name says, and the header has the command."""
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
def test_slurm_job_is_requeued_only_after_the_signal(tmp_path, ending):
    """With stubs for Slurm's commands and torchrun."""
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
