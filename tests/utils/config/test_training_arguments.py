"""What LMTrainingArguments decides for the user, and what accelerate finds of it in the environment."""

import contextlib
import dataclasses
import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from command_line import parse_needed

from utils.compat import TRANSFORMERS_5
from utils.config import (
    AdapterArguments,
    DataArguments,
    LMTrainingArguments,
    ModelArguments,
    ineffective_flags,
    precision,
    training_arguments,
)
from utils.environment import temporary_environment
from utils.errors import UsageError


@pytest.fixture
def machine(monkeypatch):
    """Makes the machine one that does or does not compute bfloat16, without or with an accelerator."""

    def has(cpu_bf16: bool, gpu_bf16: bool | None = None) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu_bf16 is not None)
        monkeypatch.setattr(precision, "is_torch_bf16_gpu_available", lambda: bool(gpu_bf16))

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    return has


@pytest.mark.parametrize(
    ("flags", "do_train", "do_eval"),
    [
        ([], True, True),
        (["--do_train"], True, False),
        (["--do_eval"], False, True),
        (["--do_train", "--do_eval"], True, True),
        (["--do_train", "false"], False, True),
        (["--do_eval", "false"], True, False),
        (["--do_train", "--do_eval", "false"], True, False),
        (["--do_train", "false", "--do_eval", "false", "--do_train"], True, False),
        (["--do_train", "--eval_strategy", "epoch"], True, True),
    ],
)
def test_what_is_done_without_being_asked_for(flags, do_train, do_eval):
    values = parse_needed(*flags)
    assert (values["do_train"], values["do_eval"]) == (do_train, do_eval)


def test_nothing_to_do():
    with pytest.raises(UsageError, match="--do_train false --do_eval false: nothing is left to do"):
        parse_needed("--do_train", "false", "--do_eval", "false")
    with pytest.raises(UsageError, match="--do_eval false and --eval_strategy epoch contradict each other"):
        parse_needed("--do_eval", "false", "--eval_strategy", "epoch")


def test_replaced_arguments_are_the_others_with_one_change():
    """As `dataclasses.replace` is used in programs that call a script's functions."""
    for arguments in (
        LMTrainingArguments(report_to=[], learning_rate=1e-3),
        DataArguments(train_file=["a.txt"]),
        ModelArguments(model_name_or_path="gpt2"),
        AdapterArguments(),
    ):
        same, before = (vars(each).copy() for each in (dataclasses.replace(arguments), arguments))
        for name in ("distributed_state", "start_time"):
            same.pop(name, None), before.pop(name, None)
        assert same == before
    assert dataclasses.replace(LMTrainingArguments(report_to=[]), do_eval=False).do_train
    assert dataclasses.replace(DataArguments(train_file=["a.txt"]), block_size=8).shuffle_buffer_size == 10_000


@pytest.mark.parametrize("cpu_bf16", [False, True])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], None), (["--bf16", "false"], False), (["--fp16", "--use_cpu", "false"], False)],
)
def test_bf16_is_chosen_where_the_cpu_computes_it(machine, monkeypatch, cpu_bf16, flags, expected):
    machine(cpu_bf16=cpu_bf16)
    monkeypatch.setattr(ineffective_flags, "has_accelerator", lambda use_cpu: True)  # without one, fp16 is refused
    values = parse_needed(*flags)
    assert values["bf16"] is (cpu_bf16 if expected is None else expected)


@pytest.mark.parametrize(
    ("cpu_bf16", "gpu_bf16", "flags", "expected"),
    [
        (False, True, [], True),
        (True, False, [], False),
        (False, True, ["--use_cpu"], False),
        (True, False, ["--use_cpu"], True),
        (True, True, ["--bf16", "false"], False),
    ],
)
def test_bf16_follows_the_device_of_the_run(machine, monkeypatch, cpu_bf16, gpu_bf16, flags, expected):
    machine(cpu_bf16, gpu_bf16)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: gpu_bf16)
    assert parse_needed(*flags)["bf16"] is expected


@pytest.mark.parametrize("amx", [False, True])
def test_one_of_both_cpu_capabilities_is_enough(machine, monkeypatch, amx):
    machine(cpu_bf16=not amx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert parse_needed()["bf16"] is True


def test_bf16_refused_where_nothing_computes_it(machine):
    machine(cpu_bf16=False)
    with pytest.raises(UsageError, match="--bf16: this machine does not compute bfloat16; leave it out"):
        parse_needed("--bf16")


def test_bf16_is_emulated_on_request(machine, caplog):
    machine(cpu_bf16=False)
    assert parse_needed("--bf16", "--use_cpu")["bf16"] is True
    assert "emulates bfloat16" in caplog.text


def mixed_precision(values: dict) -> str:
    """That of an Accelerator that is created as ResumableTrainer does it."""
    AcceleratorState._reset_state()
    given = {"mixed_precision": values["mixed_precision"]} if TRANSFORMERS_5 else {}  # from Trainer
    with temporary_environment(**values["accelerate_environment"]):
        return Accelerator(**given).mixed_precision


@pytest.mark.parametrize(
    ("launcher", "flags", "bf16", "expected"),
    [
        (None, [], True, "bf16"),
        (None, ["--bf16"], True, "bf16"),
        (None, ["--bf16", "false"], False, "no"),
        (None, ["--fp16"], False, "fp16"),
        ("fp16", [], False, "fp16"),  # left to the launcher
        ("bf16", [], False, "bf16"),
        ("fp16", ["--bf16"], True, "bf16"),
        ("bf16", ["--bf16", "false"], False, "no"),
        ("bf16", ["--fp16"], False, "fp16"),
        ("no", [], False, "no"),
    ],
)
def test_precision_that_accelerate_finds(machine, monkeypatch, launcher, flags, bf16, expected):
    machine(cpu_bf16=True)
    monkeypatch.setattr(ineffective_flags, "has_accelerator", lambda use_cpu: True)  # without one, fp16 is refused
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    values = parse_needed(*flags)
    assert values["bf16"] is bf16
    assert values["accelerate_environment"]["ACCELERATE_MIXED_PRECISION"] == expected
    assert mixed_precision(values) == expected
    assert os.environ.get("ACCELERATE_MIXED_PRECISION") == launcher


def test_a_run_leaves_no_precision_to_the_next_one(machine):
    machine(cpu_bf16=True)
    assert [mixed_precision(parse_needed(*flags)) for flags in ([], ["--bf16", "false"], [])] == ["bf16", "no", "bf16"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--bf16"],
        ["--torch_compile_backend", "eager", "--torch_compile_mode", "default"],
        ["--fsdp", "full_shard auto_wrap"],
        ["--report_to", "no_such_service"],
    ],
)
def test_the_environment_is_left_as_it_was(machine, monkeypatch, flags):
    machine(cpu_bf16=True)
    monkeypatch.setattr(LMTrainingArguments, "_check_fsdp", lambda self: None)
    before = dict(os.environ)
    with contextlib.suppress(UsageError):
        parse_needed(*flags)
    assert dict(os.environ) == before


@pytest.mark.skipif(TRANSFORMERS_5, reason="transformers 5 passes these to accelerate without the environment")
def test_compilation_reaches_accelerate(machine):
    environment = parse_needed("--torch_compile_backend", "eager", "--torch_compile_mode", "max-autotune")[
        "accelerate_environment"
    ]
    assert environment["ACCELERATE_DYNAMO_BACKEND"] == "eager"
    assert environment["ACCELERATE_DYNAMO_MODE"] == "max-autotune"


@pytest.mark.parametrize(("kind", "reshards"), [("full_shard", "true"), ("shard_grad_op", "false")])
def test_fsdp_is_version_2(monkeypatch, kind, reshards):
    monkeypatch.setattr(LMTrainingArguments, "_check_fsdp", lambda self: None)
    environment = parse_needed("--fsdp", f"{kind} auto_wrap")["accelerate_environment"]
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == reshards


def test_sharding_by_the_launcher(monkeypatch):
    """Its settings count, not ours."""
    assert not LMTrainingArguments(report_to=[]).is_sharded
    monkeypatch.setattr(LMTrainingArguments, "_check_fsdp", lambda self: None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    training_args = LMTrainingArguments(report_to=[])
    assert training_args.is_sharded
    assert training_args.accelerate_environment["FSDP_VERSION"] == "1"


@pytest.mark.skipif(TRANSFORMERS_5, reason="transformers 5 does not have the flag")
@pytest.mark.parametrize("flag", ["--half_precision_backend", "--fp16_backend"])
def test_apex_is_refused(flag):
    with pytest.raises(UsageError, match="--half_precision_backend apex: .*; leave it out"):
        parse_needed(flag, "apex")


def test_sharding_that_cannot_be(monkeypatch):
    with pytest.raises(UsageError, match="--fsdp: accelerate shards models on GPUs only"):
        parse_needed("--fsdp", "full_shard auto_wrap")
    monkeypatch.setattr(training_arguments, "has_accelerator", lambda use_cpu: True)
    with pytest.raises(UsageError, match="--fsdp shards a model across processes: give --num_processes 2"):
        parse_needed("--fsdp", "full_shard auto_wrap")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="recipes/accelerate/fsdp2_hybrid.yaml"):
        parse_needed("--fsdp", "hybrid_shard")
