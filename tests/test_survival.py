"""Runs that end early: killed, stopped, out of time or disk. Resumed, they end as if nothing had happened.

What is killed is a real process, forked from this one.
"""

import json
import os
import pathlib
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from processes import SECONDS, Forked, at_step, signal_oneself
from safetensors.torch import load_file
from scripts import FROM_SCRATCH, SCRIPTS, write_documents

import run_clm
from utils.training.checkpoint_files import find_corruption, read_metadata
from utils.training.trainer import LMTrainer


@pytest.fixture(autouse=True)
def handlers():
    """A run that a signal ends leaves the signal ignored, since the process ends next; this one does not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def train_file(tmp_path):
    return write_documents(tmp_path / "train.txt", 60, lines_per_document=4)


@pytest.fixture
def flags(train_file, common_args):
    """10 updates an epoch of a small model, two epochs, a checkpoint after every third update."""

    def of(name: str = "clm") -> list[str]:
        flags = [*FROM_SCRATCH[name], *common_args, "--train_file", train_file, "--block_size", 16, "--do_train"]
        flags += ["--num_train_epochs", 2, "--learning_rate", "1e-2", "--save_strategy", "steps", "--save_steps", 3]
        flags += ["--per_device_train_batch_size", 4, "--max_train_samples", 40, "--use_cpu"]
        return [str(flag) for flag in flags + ["--line_by_line"] * (name == "mlm")]

    return of


@pytest.fixture
def forked(tmp_path):
    """`forked(script, output_dir, *args, patch=..., num_processes=...)` runs a script in processes; see Forked."""

    def start(script, output_dir, *args, **options) -> Forked:
        words = [str(word) for word in ("--output_dir", output_dir, *args)]
        return Forked(tmp_path / "forked.log", lambda: script.main(words), **options)

    return start


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_run(folder: Path, expected: Path) -> None:
    """Bit-equal weights, and the same figures."""
    for name, value in weights(expected).items():
        assert torch.equal(weights(folder)[name], value)
    results, expected_results = (json.loads((path / "all_results.json").read_text()) for path in (folder, expected))
    for key in ("train_tokens", "train_samples", "epoch"):
        assert results[key] == expected_results[key]
    assert results["train_loss"] == pytest.approx(expected_results["train_loss"], rel=1e-9)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


# Killed


@pytest.mark.parametrize(
    ("name", "workers", "kills"), [("clm", 0, 3), ("mlm", 2, 2), ("plm", 0, 1), ("pretraining", 1, 1)]
)
def test_killed_at_random_updates(name, workers, kills, flags, forked, tmp_path):
    """By kill -9, one to three times; mlm twice in the first epoch."""
    args, script = [*flags(name), "--dataloader_num_workers", workers], SCRIPTS[name]
    script.main(["--output_dir", str(tmp_path / "twin"), *map(str, args)])
    for step in sorted(random.Random(script.__name__).sample(range(2, 10 if kills == 2 else 20), kills)):
        run = forked(script, tmp_path / "out", *args, patch=at_step(step, lambda: os.killpg(0, signal.SIGKILL)))
        assert run.wait() == [-signal.SIGKILL], run.output
        assert max((int(name.split("-")[1]) for name in checkpoints(tmp_path / "out")), default=0) == step // 3 * 3
    script.main(["--output_dir", str(tmp_path / "out"), *map(str, args)])
    assert_same_run(tmp_path / "out", tmp_path / "twin")


def test_killed_while_it_saves(flags, forked, tmp_path):
    """Just before the first checkpoint gets its name, and halfway through the second. Neither counts as one."""
    args = flags()
    run_clm.main(["--output_dir", str(tmp_path / "twin"), *args])

    def before_the_name(monkeypatch, rank):
        def rename(path, target):
            if Path(target).name == "checkpoint-3":
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(path, target)

        plain = pathlib.Path.rename
        monkeypatch.setattr(pathlib.Path, "rename", rename)

    def without_optimizer(monkeypatch, rank):
        def save(value, path, *args, **kwargs):
            if Path(path).parent.name.startswith("checkpoint-6") and Path(path).name == "optimizer.pt":
                os.kill(os.getpid(), signal.SIGKILL)
            plain(value, path, *args, **kwargs)

        plain = torch.save
        monkeypatch.setattr(torch, "save", save)

    for patch, left in (
        (before_the_name, ["checkpoint-3.unfinished"]),
        (without_optimizer, ["checkpoint-3", "checkpoint-6.unfinished"]),
    ):
        run = forked(run_clm, tmp_path / "out", *args, patch=patch)
        assert run.wait() == [-signal.SIGKILL], run.output
        assert checkpoints(tmp_path / "out") == left
    run_clm.main(["--output_dir", str(tmp_path / "out"), *args])
    assert_same_run(tmp_path / "out", tmp_path / "twin")
    assert not list((tmp_path / "out").glob("*.unfinished"))


def test_two_processes_killed(flags, forked, tmp_path):
    """One process is killed, and the other cannot continue alone. Resumed by two, the run ends bit-equal."""
    args = flags()
    twin = forked(run_clm, tmp_path / "twin", *args, num_processes=2)
    assert twin.wait() == [0, 0], twin.output
    for step in (4, 5):
        patch = at_step(step, signal_oneself(signal.SIGKILL), of_rank=1)
        run = forked(run_clm, tmp_path / "out", *args, patch=patch, num_processes=2)
        assert run.wait_for_the_end_of(1) == -signal.SIGKILL, run.output
    run = forked(run_clm, tmp_path / "out", *args, num_processes=2)
    assert run.wait() == [0, 0], run.output
    assert_same_run(tmp_path / "out", tmp_path / "twin")


def test_stream_killed_and_stopped(flags, forked, tmp_path):
    """With one process and with two, the stream continues after the last batch that was trained on."""
    args = flags()
    place = args.index("--max_train_samples")
    args[place : place + 2] = ["--streaming", "--shuffle_buffer_size", "10", "--max_steps", "30"]
    for num_processes in (1, 2):
        twin, out = (tmp_path / f"{name}-{num_processes}" for name in ("twin", "out"))
        run = forked(run_clm, twin, *args, num_processes=num_processes)
        assert run.wait() == [0] * num_processes, run.output
        for step, number in ((11, signal.SIGTERM), (17, signal.SIGKILL)):
            patch = at_step(step, signal_oneself(number))
            run = forked(run_clm, out, *args, num_processes=num_processes, patch=patch)
            if number == signal.SIGTERM:
                assert run.wait() == [143] * num_processes, run.output
                assert "checkpoint-12" in checkpoints(out)
            else:
                assert run.wait_for_the_end_of(0) == -signal.SIGKILL, run.output
        run = forked(run_clm, out, *args, num_processes=num_processes)
        assert run.wait() == [0] * num_processes, run.output
        for name, value in weights(twin).items():
            assert torch.equal(weights(out)[name], value)


# Any number of processes


def test_number_of_processes_changes_nothing(flags, forked, tmp_path, checkpoint):
    """1 process x 8, 2 x 4, 4 x 2, and a run of 4 resumed by 1: the same examples, each once, and weights."""
    args = ["--model_name_or_path", str(checkpoint("gpt2")), *flags()[len(FROM_SCRATCH["clm"]) :], "--optim", "sgd"]
    args += ["--max_grad_norm", 0, "--save_steps", 5]
    args += [
        "--max_train_samples",
        42,
    ]  # 42 = 5 x 8 + 2: two of four processes have nothing to do in an epoch's last step
    size = "--per_device_train_batch_size"
    runs = {"one": [(1, None)], "two": [(2, None)], "four": [(4, None)], "changing": [(4, 7), (1, None)]}
    for name, parts in runs.items():
        for num_processes, killed_at in parts:
            patch = None if killed_at is None else at_step(killed_at, lambda: os._exit(7), of_rank=3)
            run = forked(
                run_clm, tmp_path / name, *args, size, 8 // num_processes, num_processes=num_processes, patch=patch
            )
            if killed_at is not None:
                assert run.wait_for_the_end_of(3) == 7, run.output
            else:
                assert run.wait() == [0] * num_processes, run.output
    expected = json.loads((tmp_path / "one" / "all_results.json").read_text())
    assert expected["train_tokens"] == 2 * 42 * 16
    for name in ("two", "four", "changing"):
        results = json.loads((tmp_path / name / "all_results.json").read_text())
        assert results["train_tokens"] == expected["train_tokens"]
        assert results["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
        for key, value in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(tmp_path / name)[key], value, rtol=0, atol=1e-5)


def test_another_global_batch_is_refused(flags, run, refused, tmp_path):
    """It would train on some examples twice and skip others."""
    args = flags()
    run_clm.main(["--output_dir", str(tmp_path / "out"), *args, "--max_steps", "4"])
    message = refused(*args, "--per_device_train_batch_size", 8, output_dir=tmp_path / "out")
    assert "global batch size 4, this one has 8" in message
    message = refused(*args, "--max_train_samples", 39, output_dir=tmp_path / "out")
    assert "was trained with --max_train_samples 40, this run has --max_train_samples 39" in message
    message = refused(*args, "--seed", 7, output_dir=tmp_path / "out")
    assert "was trained with --seed 42, this run has --seed 7" in message


def test_drop_last_that_drops_everything(flags, refused, tmp_path):
    (tmp_path / "out").mkdir()
    args = [*flags(), "--dataloader_drop_last", "--per_device_train_batch_size", 1000]
    message = refused(*args, output_dir=tmp_path / "out")
    assert "--dataloader_drop_last leaves nothing of 40 examples: an update takes 1,000" in message


# Corrupt checkpoints


def test_corrupt_checkpoints_are_skipped_and_named(flags, refused, tmp_path, caplog, monkeypatch):
    args = flags()
    run_clm.main(["--output_dir", str(tmp_path / "twin"), *args])
    run_clm.main(["--output_dir", str(tmp_path / "out"), *args, "--save_total_limit", "9"])
    folder = tmp_path / "out"
    newest, before = (folder / name for name in sorted(checkpoints(folder), key=lambda name: int(name[11:]))[:-3:-1])
    parts = [path for path in newest.iterdir() if path.is_file()]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"} <= {
        path.name for path in parts
    }
    classes = [run_clm.LMTrainingArguments, run_clm.DataArguments, run_clm.ModelArguments, run_clm.CausalLMArguments]
    words = ["--output_dir", str(folder), *args]
    training_args, data_args, *_, run_args = run_clm.parse_arguments(*classes, args=words)
    for path in parts:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        caplog.clear()
        assert run_clm.find_checkpoint(training_args, data_args, run_args) == str(before)
        skipped = [record.getMessage() for record in caplog.records if "is corrupt" in record.getMessage()]
        assert len(skipped) == 1 and str(newest) in skipped[0] and path.name in skipped[0]
        if path.name != "run_args.yaml":
            message = refused(*args, "--resume_from_checkpoint", newest)
            assert f"--resume_from_checkpoint {newest} is corrupt: {path.name}" in message
        path.write_bytes(content)
    (newest / "optimizer.pt").write_bytes(b"")
    run_clm.main(["--output_dir", str(folder), *args, "--save_total_limit", "1"])
    assert_same_run(folder, tmp_path / "twin")
    assert checkpoints(folder) == [newest.name] and find_corruption(newest) is None  # replaced by an intact one
    (newest / "scheduler.pt").unlink()
    message = refused(*args, output_dir=folder)
    assert "scheduler.pt is missing" in message and "--overwrite_output_dir" in message


# A full disk


@pytest.mark.parametrize(
    ("part", "num_processes"), [("model.safetensors", 1), ("optimizer.pt", 1), ("optimizer.pt", 2)]
)
def test_disk_full(part, num_processes, flags, forked, tmp_path, capsys):
    """While the third checkpoint is written, the operating system refuses to let files grow beyond a size."""

    def fill_disk():
        size = (tmp_path / "out" / "checkpoint-6" / part).stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    args = [*flags(), "--save_total_limit", "1"]
    run = forked(run_clm, tmp_path / "out", *args, num_processes=num_processes, patch=at_step(7, fill_disk))
    assert run.wait() == [1] * num_processes, run.output
    assert checkpoints(tmp_path / "out") == ["checkpoint-6"]
    assert find_corruption(tmp_path / "out" / "checkpoint-6") is None
    assert "Traceback" not in run.output
    lines = [line for line in run.output.splitlines() if line.startswith("run_clm.py: ")]
    assert len(lines) == 1 and "checkpoint-9 could not be saved: " in lines[0]
    assert "checkpoint-6 is unchanged; make room and start again" in lines[0]
    assert re.search("File too large|PytorchStreamWriter|inline_container", lines[0])


# Stopped


@pytest.mark.parametrize(
    ("number", "step", "workers", "num_processes"),
    [
        (signal.SIGTERM, 4, 0, 1),
        (signal.SIGINT, 7, 2, 1),
        (signal.SIGTERM, 5, 0, 2),
    ],
)
def test_signal_saves_and_ends(number, step, workers, num_processes, flags, forked, tmp_path):
    """Whichever process gets it, the step is finished and saved, and the printed command resumes the run."""
    args = [*flags(), "--dataloader_num_workers", workers, "--save_strategy", "no"]
    # To its process group, so that dataloader workers get it as well.
    patch = at_step(step, lambda: os.killpg(0, number), of_rank=num_processes - 1)
    run = forked(run_clm, tmp_path / "out", *args, patch=patch, num_processes=num_processes)
    assert run.wait() == [128 + number] * num_processes, run.output
    assert checkpoints(tmp_path / "out") == [f"checkpoint-{step + 1}"]
    assert "Traceback" not in run.output
    assert f"stopped by {number.name}; step {step + 1} is saved in {tmp_path / 'out'}" in run.output
    commands = re.findall("^run_clm.py: to resume: (.*)$", run.output, re.MULTILINE)
    assert len(commands) == 1
    words = shlex.split(commands[0])
    assert words == ["python", str(ROOT / "run_clm.py"), "--output_dir", str(tmp_path / "out"), *map(str, args)]
    if num_processes == 1:
        run_clm.main(words[2:])
        run_clm.main(["--output_dir", str(tmp_path / "twin"), *map(str, args)])
        assert_same_run(tmp_path / "out", tmp_path / "twin")


def test_second_interrupt_ends_at_once(flags, forked, tmp_path):
    def interrupt_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run = forked(run_clm, tmp_path / "out", *flags(), patch=at_step(4, interrupt_twice))
    assert run.wait() == [-signal.SIGINT]
    assert checkpoints(tmp_path / "out") == ["checkpoint-3"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_signal_before_the_training_ends_at_once(number, code, flags, forked, tmp_path):
    def patch(monkeypatch, rank):
        monkeypatch.setattr(run_clm, "load_tokenizer", lambda *args: os.kill(os.getpid(), number))

    run = forked(run_clm, tmp_path / "out", *flags(), patch=patch)
    assert run.wait() == [code], run.output
    assert not (tmp_path / "out").exists() and "Traceback" not in run.output


def test_time_is_up(flags, forked, tmp_path):
    num_processes = 2
    args = [*flags(), "--overwrite_output_dir", "--max_train_hours", "1e-9"]
    run = forked(run_clm, tmp_path / "out", *args, num_processes=num_processes)
    assert run.wait() == [75] * num_processes, run.output
    assert checkpoints(tmp_path / "out") == ["checkpoint-1"]
    assert run.output.count("the time of --max_train_hours is up; step 1 is saved") == 1
    command = shlex.split(re.search("to resume: (.*)", run.output)[1])
    assert command[-2:] == ["--overwrite_output_dir", "false"]  # it would start anew
    run = forked(run_clm, *command[3:], num_processes=num_processes)
    assert run.wait() == [75] * num_processes, run.output
    assert checkpoints(tmp_path / "out") == ["checkpoint-1", "checkpoint-2"]


def test_interrupted_evaluation_is_repeated(flags, forked, tmp_path):
    """The best checkpoint is that of the uninterrupted run, even if the run ended during its evaluation."""
    args = [*flags(), "--do_eval", "--eval_strategy", "steps", "--eval_steps", "3", "--max_eval_samples", "9"]
    args += ["--load_best_model_at_end", "--learning_rate", "0.1"]
    run_clm.main(["--output_dir", str(tmp_path / "twin"), *args])
    twin = json.loads((tmp_path / "twin" / "trainer_state.json").read_text())
    best = twin["best_global_step"]

    def patch(monkeypatch, rank):
        plain = LMTrainer.evaluate

        def evaluate(self, *args, **kwargs):
            if self.state.global_step == best and self.is_in_train:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(LMTrainer, "evaluate", evaluate)

    run = forked(run_clm, tmp_path / "out", *args, patch=patch)
    assert run.wait() == [143], run.output
    assert read_metadata(tmp_path / "out" / f"checkpoint-{best}")["evaluation_is_due"]
    run = forked(run_clm, tmp_path / "out", *args, patch=patch)  # again, while it repeats the evaluation
    assert run.wait() == [143], run.output
    run_clm.main(["--output_dir", str(tmp_path / "out"), *args])
    assert_same_run(tmp_path / "out", tmp_path / "twin")
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    for key in ("best_metric", "best_global_step"):
        assert state[key] == twin[key]
    losses, twin_losses = ([log["eval_loss"] for log in s["log_history"] if "eval_loss" in log] for s in (state, twin))
    assert losses == twin_losses


def test_stop_in_the_last_update_of_an_epoch(flags, forked, tmp_path):
    """Evaluation and saving at the end of the epoch happen once."""
    args = [*flags(), "--do_eval", "--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end"]
    run_clm.main(["--output_dir", str(tmp_path / "twin"), *args])
    twin = json.loads((tmp_path / "twin" / "trainer_state.json").read_text())
    run = forked(run_clm, tmp_path / "out", *args, patch=at_step(9, signal_oneself(signal.SIGTERM)))
    assert run.wait() == [143], run.output
    run_clm.main(["--output_dir", str(tmp_path / "out"), *args])
    assert_same_run(tmp_path / "out", tmp_path / "twin")
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    evaluated = [[log["step"] for log in s["log_history"] if "eval_loss" in log] for s in (state, twin)]
    assert evaluated[0] == evaluated[1]


def test_torchrun(flags, tmp_path):
    """SIGTERM to one process of a real job: both save and end with 143, and the launcher's command is printed."""
    args = [*flags(), "--num_train_epochs", "1000", "--output_dir", str(tmp_path / "out")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    job = subprocess.Popen(
        [*launcher, "run_clm.py", *args], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        lines = []
        for line in job.stdout:
            lines.append(line)
            if " | loss " in line or not line:
                break
        assert " | loss " in lines[-1], "".join(lines)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGTERM)
        output = "".join(lines) + job.communicate(timeout=SECONDS)[0]
    finally:
        job.kill()
    assert job.returncode == 1  # torchrun's own, whatever its processes return
    assert "exitcode: 143" in output or "exitcode  : 143" in output, output
    step = int(re.search(r"stopped by SIGTERM; step ([\d,]+) is saved", output)[1].replace(",", ""))
    assert f"checkpoint-{step}" in checkpoints(tmp_path / "out")
    assert find_corruption(tmp_path / "out" / f"checkpoint-{step}") is None
    commands = re.findall("^run_clm.py: to resume: (.*)$", output, re.MULTILINE)
    assert [shlex.split(command) for command in commands] == [[*launcher, "run_clm.py", *args]]


def test_launcher_is_killed(flags, tmp_path, caplog):
    """By kill -9. Its processes save after the same step and end, and the command that they print resumes the run."""
    args = [*flags(), "--output_dir", str(tmp_path / "out"), "--max_steps", "120", "--save_steps", "1000"]
    command = [sys.executable, "run_clm.py", *args, "--logging_steps", "1", "--num_processes", "2"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in job.stdout:
            if " | loss " in line:
                break
    finally:
        job.kill()
    output = job.communicate(timeout=SECONDS)[0]  # ends when no process is left that can write to it
    step = int(re.search(r"stopped by SIGTERM; step ([\d,]+) is saved", output)[1].replace(",", ""))
    assert checkpoints(tmp_path / "out") == [f"checkpoint-{step}"] and step < 120
    (to_resume,) = re.findall("^run_clm.py: to resume: (.*)$", output, re.MULTILINE)
    assert shlex.split(to_resume) == command
    with caplog.at_level("INFO", "utils"):
        run_clm.main([*args, "--per_device_train_batch_size", "8"])  # the same batches in one process
    assert re.search(rf"resuming from .*checkpoint-{step}\b", caplog.text)
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 120


# Diverged


@pytest.mark.parametrize(("what", "num_processes"), [("loss", 2), ("weights", 1)])
def test_divergence_ends_the_run(what, num_processes, flags, forked, tmp_path):
    """The fifth update diverges, in one process; nothing after it is saved."""

    def patch(monkeypatch, rank):
        plain = LMTrainer.compute_loss

        def compute_loss(self, *args, **kwargs):
            if self.state.global_step >= 4 and rank == num_processes - 1:
                if what == "weights":
                    next(self.model.parameters()).data[0] = torch.inf
                return plain(self, *args, **kwargs) * torch.nan
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(LMTrainer, "compute_loss", compute_loss)

    args = [*flags(), "--save_steps", 3 if what == "weights" else 4]
    run = forked(run_clm, tmp_path / "out", *args, patch=patch, num_processes=num_processes)
    assert run.wait() == [1] * num_processes, run.output
    (name,) = checkpoints(tmp_path / "out")
    step, cause = (6, "weights are") if what == "weights" else (7, "loss or gradients are")
    line = next(line for line in run.output.splitlines() if "diverged" in line)
    assert line.startswith(f"run_clm.py: step {step}: the training has diverged: {cause} NaN or infinite")
    assert f"the last good checkpoint is {tmp_path / 'out' / name}" in line
    assert re.search(r"learning rate 0\.0\d+", line)
    assert run.output.count("diverged") == 1 and "to resume" not in run.output


def test_divergence_in_the_last_updates_is_not_saved(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run_clm.main(["--output_dir", str(tmp_path / "out"), *flags(), "--max_steps", "2", "--learning_rate", "1e38"])
    assert end.value.code == 1
    assert "there is no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists() and not checkpoints(tmp_path / "out")


# Flags


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--learning_rate -1", ["--learning_rate -1"]),
        ("--learning_rate nan", ["--learning_rate nan"]),
        ("--max_train_hours 0", ["--max_train_hours 0", "above 0"]),
        ("--metric_for_best_model bleu", ["--metric_for_best_model bleu", "eval_loss"]),
    ],
)
def test_refused_flags(words, named, flags, refused):
    message = refused(*flags(), *words.split())
    for part in named:
        assert part in message
