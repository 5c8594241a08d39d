"""How a script is called: flags, a file of flags, both; what is refused, and what is decided for the user."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, run_python

from run_clm import CausalLMArguments
from utils.config import parser, training_arguments
from utils.config.data_arguments import DataArguments
from utils.config.entry_point import entry_point, resume_command
from utils.config.model_arguments import ModelArguments
from utils.config.parser import parse_arguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import EarlyEnd, UsageError


NEEDED = {"model_type": "gpt2", "train_tokenizer": "bpe", "train_file": ["a.txt", "b.txt"], "output_dir": "out"}
SCALARS = {
    **NEEDED,
    "block_size": 64,
    "learning_rate": 0.0003,
    "append_eos": True,
    "keep_linebreaks": False,
    "bf16": False,
    "config_overrides": "n_embd=32,n_layer=2",
}


def parse(*flags) -> dict:
    """All values of all dataclasses by name, and the flags that were given, as `run_args`."""
    *parsed, run_args = parse_arguments(
        ModelArguments, DataArguments, CausalLMArguments, LMTrainingArguments, args=[str(flag) for flag in flags]
    )
    return {name: value for values in parsed for name, value in vars(values).items()} | {"run_args": run_args}


def as_flags(values: dict) -> list[str]:
    flags = []
    for key, value in values.items():
        flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def parse_needed(*flags) -> dict:
    return parse(*as_flags(NEEDED), *flags)


@pytest.fixture
def flag_file(tmp_path):
    """Writes values into a file of flags in the format of its suffix."""

    def write(values: dict, suffix: str):
        path = tmp_path / f"run{suffix}"
        path.write_text(json.dumps(values) if suffix == ".json" else yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def machine(monkeypatch):
    """Makes the machine one that does or does not compute bfloat16, without or with an accelerator."""

    def has(cpu_bf16: bool, gpu_bf16: bool | None = None) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu_bf16 is not None)
        monkeypatch.setattr(training_arguments, "is_torch_bf16_gpu_available", lambda: bool(gpu_bf16))
        monkeypatch.setattr(training_arguments, "LAUNCHER_PRECISION", None)

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what parsing writes there is undone after the test
    return has


# Flags and files


def test_flags():
    values = parse(*as_flags(SCALARS))
    assert {key: values[key] for key in SCALARS} == SCALARS


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_file_says_the_same_as_flags(flag_file, suffix):
    values = parse(flag_file(SCALARS, suffix))
    assert {key: values[key] for key in SCALARS} == SCALARS
    assert values["run_args"] == parse(*as_flags(SCALARS))["run_args"]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_flags_win_over_the_file(flag_file, suffix):
    values = parse(flag_file(SCALARS, suffix), "--block_size", 32, "--append_eos", "false", "--train_file", "c.txt")
    changed = {"block_size": 32, "append_eos": False, "train_file": ["c.txt"]}
    assert {key: values[key] for key in SCALARS} == SCALARS | changed


def test_null_in_a_file_leaves_the_default(flag_file):
    values = parse(flag_file(NEEDED | {"block_size": None, "metric": None}, ".yaml"))
    assert values["block_size"] is None and values["metric"] is None
    assert values["run_args"] == NEEDED


def test_values_in_a_file_are_taken_literally(flag_file):
    odd = {"output_dir": "--out=x y", "hub_model_id": "", "text_column": "naïve: 'text' #1"}
    values = parse(flag_file(NEEDED | odd, ".yaml"))
    assert {key: values[key] for key in odd} == odd


def test_dict_in_a_file(flag_file):
    given = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.00001}}
    assert parse(flag_file(NEEDED | given, ".yaml"))["lr_scheduler_kwargs"] == {"min_lr": 0.00001}


def test_one_file_need_not_be_a_list(flag_file):
    assert parse(flag_file(NEEDED | {"train_file": "c.txt"}, ".yaml"))["train_file"] == ["c.txt"]


def test_words_of_the_command_line_are_the_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run_clm.py", *as_flags(SCALARS)])
    model_args, *_ = parse_arguments(
        ModelArguments, DataArguments, CausalLMArguments, LMTrainingArguments
    )  # no args: sys.argv
    assert model_args.config_overrides == SCALARS["config_overrides"]


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--bf16", "false"], "bf16", False),
        (["--bf16", "true"], "bf16", True),
        (["--bf16"], "bf16", True),
        (["--append_eos"], "append_eos", True),
        (["--append_eos", "false"], "append_eos", False),
        (["--keep_linebreaks", "false"], "keep_linebreaks", False),
        (["--no_keep_linebreaks"], "keep_linebreaks", False),
        (["--no-keep-linebreaks"], "keep_linebreaks", False),
        (["--use_fast_tokenizer", "False"], "use_fast_tokenizer", False),
        (["--max_seq_length", "32"], "block_size", 32),
        (["--block-size", "32"], "block_size", 32),
        (["--torch_dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--text_column_name", "body"], "text_column", "body"),
        (["--config_overrides=n_embd=8,n_layer=1"], "config_overrides", "n_embd=8,n_layer=1"),
    ],
)
def test_spellings(machine, flags, name, value):
    machine(cpu_bf16=True)
    values = parse_needed(*flags)
    assert values[name] == value and type(values[name]) is type(value)
    assert values["run_args"] == NEEDED | {name: value}


def test_bare_flag_takes_no_word_of_the_next_one(machine):
    machine(cpu_bf16=True)
    values = parse_needed("--bf16", "--block_size", "16")
    assert values["bf16"] is True and values["block_size"] == 16


def test_run_args_hold_what_was_given_even_if_it_is_the_default(flag_file):
    given = {"seed": 42, "keep_linebreaks": True}
    assert parse(flag_file(NEEDED | given, ".json"))["run_args"] == NEEDED | given
    assert parse_needed("--seed", "42", "--keep_linebreaks", "true")["run_args"] == NEEDED | given


def test_run_args_repeat_the_run(flag_file):
    first = parse(*as_flags(SCALARS))
    again = parse(flag_file(first["run_args"], ".yaml"))
    unlike = {"logging_dir", "run_args", "distributed_state", "deepspeed_plugin", "accelerator_config"}
    assert {key: value for key, value in again.items() if key not in unlike} == {
        key: value for key, value in first.items() if key not in unlike
    }
    assert again["run_args"] == first["run_args"]


def test_run_args_is_no_flag():
    with pytest.raises(UsageError, match="unknown flag --run_args"):
        parse_needed("--run_args", "{}")


# Refusals


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--trian_file", "--train_file"),
        ("--batch_size", None),
        ("--per_device_train_batchsize", "--per_device_train_batch_size"),
        ("--num_epochs", "--num_train_epochs"),
        ("--lerning_rate=0.1", "--learning_rate"),
        ("--train_fil", "--train_file"),
    ],
)
def test_unknown_flag_names_the_nearest(flag, meant):
    with pytest.raises(UsageError, match=f"^unknown flag {flag}") as refusal:
        parse_needed(flag, "1")
    if meant:
        assert f"did you mean {meant}?" in str(refusal.value)


def test_flag_like_no_other_points_to_the_help():
    with pytest.raises(UsageError, match=r"unknown flag --zzzzqqqq .*--help"):
        parse_needed("--zzzzqqqq")


@pytest.mark.parametrize("abbreviation", ["--block", "--train_fil", "--output", "--learning", "--bf"])
def test_no_abbreviations(abbreviation):
    with pytest.raises(UsageError, match=f"unknown flag {abbreviation}"):
        parse_needed(abbreviation, "1")


def test_stray_word():
    with pytest.raises(UsageError, match="stray"):
        parse("stray", *as_flags(NEEDED))


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_unknown_key_names_file_and_key(flag_file, suffix):
    path = flag_file(NEEDED | {"blocksize": 8}, suffix)
    with pytest.raises(UsageError) as refusal:
        parse(path)
    assert str(path) in str(refusal.value) and "blocksize" in str(refusal.value)
    assert "did you mean --block_size?" in str(refusal.value)


@pytest.mark.parametrize("key", ["run_args", "help", "h"])
def test_key_that_is_no_flag_of_the_run(flag_file, key):
    with pytest.raises(UsageError, match=key):
        parse(flag_file(NEEDED | {key: True}, ".yaml"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "model_type: gpt2\n  block_size: [1"),
        ("a.yaml", "train_file: 'a.txt\n"),
        ("a.yml", "\tblock_size: 8"),
        ("a.json", '{"block_size": 8,}'),
        ("a.json", ""),
        ("a.yaml", ""),
        ("a.yaml", "just a sentence"),
        ("a.json", '["block_size", 8]'),
        ("a.yaml", "- block_size: 8"),
    ],
)
def test_malformed_file_of_flags(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError) as refusal:
        parse(path)
    assert str(path) in str(refusal.value)


def test_file_of_flags_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("text_column: naïve".encode("latin-1"))
    with pytest.raises(UsageError, match="latin.yaml"):
        parse(path)


@pytest.mark.parametrize("name", ["missing.yaml", "folder.json"])
def test_file_of_flags_that_cannot_be_read(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match=name):
        parse(tmp_path / name)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("block_size", "many"),
        ("block_size", "1.5"),
        ("learning_rate", "fast"),
        ("append_eos", "perhaps"),
        ("bf16", "perhaps"),
        ("dtype", "int8"),
        ("document_by", "page"),
        ("train_tokenizer", "morse"),
        ("lr_scheduler_type", "sawtooth"),
        ("eval_strategy", "sometimes"),
        ("optim", "magic"),
        ("warmup_ratio", "2"),
        ("lr_scheduler_kwargs", "{bad"),
        ("fsdp_config", "missing.json"),
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_value_of_the_wrong_kind(flag_file, flag, value, from_file):
    words = [flag_file(NEEDED | {flag: value}, ".yaml")] if from_file else [*as_flags(NEEDED), f"--{flag}", value]
    with pytest.raises(UsageError) as refusal:
        parse(*words)
    message = str(refusal.value)
    assert flag in message or value in message


@pytest.mark.parametrize("flag", ["--output_dir", "--train_file", "--block_size"])
def test_flag_without_its_value(flag):
    with pytest.raises(UsageError, match=flag):
        parse(*as_flags(NEEDED | {"seed": 1}), flag)


def test_message_is_one_line_and_the_exit_code_2(capsys):
    @entry_point
    def main(args):
        raise UsageError("one\n  two\t three")

    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "test_command_line.py: error: one two three\n"


def test_only_the_first_process_of_a_machine_prints_the_message(capsys, monkeypatch):
    @entry_point
    def main(args):
        raise UsageError("once")

    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == ""


def test_other_errors_keep_their_traceback():
    @entry_point
    def main(args):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        main([])


# What is decided for the user


@pytest.mark.parametrize(
    ("flags", "do_train", "do_eval"),
    [
        ([], True, True),
        (["--do_train"], True, False),
        (["--do_eval"], False, True),
        (["--do_train", "--do_eval"], True, True),
        (["--do_train", "false"], True, True),
        (["--do_train", "--eval_strategy", "epoch"], True, True),
    ],
)
def test_neither_training_nor_evaluation_means_both(flags, do_train, do_eval):
    values = parse_needed(*flags)
    assert (values["do_train"], values["do_eval"]) == (do_train, do_eval)


@pytest.mark.parametrize("cpu_bf16", [False, True])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], None), (["--bf16", "false"], False), (["--fp16", "--use_cpu", "false"], False)],
)
def test_bf16_is_chosen_where_the_cpu_computes_it(machine, cpu_bf16, flags, expected):
    machine(cpu_bf16=cpu_bf16)
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


def test_bf16_is_imitated_on_request(machine, caplog):
    machine(cpu_bf16=False)
    assert parse_needed("--bf16", "--use_cpu")["bf16"] is True
    assert "imitates bfloat16" in caplog.text


def test_launcher_precision_is_left_to_the_launcher(machine, monkeypatch):
    machine(cpu_bf16=True)
    monkeypatch.setattr(training_arguments, "LAUNCHER_PRECISION", "fp16")
    assert parse_needed()["bf16"] is False
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "fp16"


def test_bf16_false_wins_over_the_launcher(machine, monkeypatch):
    machine(cpu_bf16=True)
    monkeypatch.setattr(training_arguments, "LAUNCHER_PRECISION", "bf16")
    assert parse_needed("--bf16", "false")["bf16"] is False
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"


def test_a_run_leaves_no_precision_to_the_next_one(machine):
    machine(cpu_bf16=True)
    assert parse_needed()["bf16"] is True
    assert parse_needed("--bf16", "false")["bf16"] is False
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"


END_OF_A_JOB = """
import atexit
import sys
from pathlib import Path
from pathlib import Path

import torch
import torch._dynamo  # as the scripts do: imported later, it would hold the process group

from utils.config.entry_point import entry_point


@entry_point
def main(args):
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
    model.itself = model
    for _ in range(3):
        model(torch.ones(4, 8)).sum().backward()
    torch.distributed.all_reduce(torch.zeros(4))


def gloo_threads():
    return [path for path in Path("/proc/self/task").glob("*/comm") if "gloo" in path.read_text()]


def write_the_threads_left():
    Path(sys.argv[1], f"{rank}.txt").write_text(str(len(gloo_threads())))


atexit.register(write_the_threads_left)  # runs after what main registers
main()
main()
rank = torch.distributed.get_rank()
assert gloo_threads()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_a_job_ends_its_process_group(tmp_path):
    """All processes exit with 0, and no thread that communicates outlives the group."""
    script = tmp_path / "job.py"
    script.write_text(END_OF_A_JOB)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--standalone"]
    run_python(*launcher, script, tmp_path, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["0", "0"]


def test_command_that_resumes(monkeypatch):
    """As it was given, quoted, with what it needs besides; tokens are left out."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    script = Path("run_clm.py")
    args = ["--train_file", "my text.txt", "--hub_token", "hf_1", "--token=hf_2", "--output_dir", "out"]
    command = resume_command(script, args, ["--overwrite_output_dir", "false"])
    assert command == (
        "python run_clm.py --train_file 'my text.txt' --hub_token ... --token=... --output_dir out "
        "--overwrite_output_dir false"
    )
    monkeypatch.setattr("sys.orig_argv", ["python3", "-u", *command.split()[1:3]])
    assert resume_command(script, None, []) == "python3 -u run_clm.py --train_file"


def test_command_that_resumes_a_job_of_torchrun(monkeypatch):
    """Where the launcher's command line cannot be read, as far as its processes know it."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr("sys.argv", ["run_clm.py", "--output_dir", "out"])
    monkeypatch.setattr("os.getppid", lambda: "no such process")
    command = resume_command(Path("run_clm.py"), None, [])
    assert command == "torchrun --nnodes 2 --nproc_per_node 8 run_clm.py --output_dir out"


def test_early_end_is_one_line_and_its_code(capsys, monkeypatch):
    @entry_point
    def main(args):
        raise EarlyEnd("the disk\nis full", 7, ["--more", "1"])

    with pytest.raises(SystemExit) as end:
        main(["--output_dir", "out"])
    assert end.value.code == 7
    first, second = capsys.readouterr().err.splitlines()
    assert first == "test_command_line.py: the disk is full"
    assert second.startswith("test_command_line.py: to go on: python ") and second.endswith(
        "--output_dir out --more 1"
    )
    monkeypatch.setenv("RANK", "1")  # one process tells
    with pytest.raises(SystemExit):
        main([])
    assert not capsys.readouterr().err


# How many processes


class Launched(Exception):
    """Raised in the place of starting processes."""


@pytest.fixture
def launched(monkeypatch):
    """`launched(gpus, *flags)` is the number of processes that the command line starts; 1 if it goes on itself."""

    def call(gpus: int, *flags, **environment) -> int:
        def launch(command, num_processes):
            raise Launched(command, num_processes)

        for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        words = ["run_clm.py", "--model_name_or_path", "gpt2", "--train_file", "train.txt", *flags]
        monkeypatch.setattr(parser, "launch", launch)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(LMTrainingArguments, "__post_init__", lambda self: None)
        try:
            parse_arguments(ModelArguments, DataArguments, LMTrainingArguments)
        except Launched as started:
            command, num_processes = started.args
            assert command == words
            return num_processes
        return 1

    return call


@pytest.mark.parametrize(
    ("gpus", "flags", "expected"),
    [
        (0, (), 1),
        (0, ("--num_processes", "3"), 3),
        (1, (), 1),
        (8, (), 8),
        (8, ("--num_processes", "2"), 2),
        (8, ("--num_processes=1",), 1),
        (8, ("--use_cpu",), 1),
        (8, ("--use_cpu", "false"), 8),
        (8, ("--use_cpu", "--num_processes", "9"), 9),
        (8, ("--preprocess_only",), 1),
    ],
)
def test_a_process_for_each_gpu(launched, gpus, flags, expected):
    assert launched(gpus, *flags) == expected


def test_what_a_launcher_started_starts_no_others(launched):
    environment = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert launched(8, **environment) == 1
    assert launched(8, "--num_processes", "2", **environment) == 1
    with pytest.raises(UsageError, match="--num_processes 4, but the launcher has started 2"):
        launched(8, "--num_processes", "4", **environment)


@pytest.mark.parametrize(
    ("gpus", "flags", "message"),
    [
        (0, ("--num_processes", "0"), "--num_processes 0: give 1 or more"),
        (2, ("--num_processes", "3"), "--num_processes 3: there are 2 GPUs here"),
        (0, ("--tpu", "my-tpu"), "--tpu was TensorFlow's: on a TPU machine"),
    ],
)
def test_processes_that_cannot_be(launched, gpus, flags, message):
    with pytest.raises(UsageError, match=message):
        launched(gpus, *flags)


def test_a_call_of_main_starts_none():
    with pytest.raises(UsageError, match="works on the command line"):
        parser._processes_to_start({"num_processes": 2}, is_script=False)
    assert parser._processes_to_start({}, is_script=False) == 1


def test_sharding_that_cannot_be(monkeypatch):
    with pytest.raises(UsageError, match="--fsdp: accelerate shards a model on GPUs alone"):
        parse_needed("--fsdp", "full_shard auto_wrap")
    monkeypatch.setattr(LMTrainingArguments, "_choose_precision", lambda self: None)  # as if there were a GPU
    with pytest.raises(UsageError, match="--fsdp shares a model out among processes: give --num_processes 2"):
        parse_needed("--fsdp", "full_shard auto_wrap")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="recipes/accelerate/fsdp2_hybrid.yaml"):
        parse_needed("--fsdp", "hybrid_shard")
