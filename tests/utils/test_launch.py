"""utils/launch.py: processes are started together, end together, and one of them says why."""

import multiprocessing
import os
import select
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT
from torch.distributed.elastic.multiprocessing import api

from utils.errors import EarlyEnd
from utils.launch import ended_with_launcher, launch


JOB = """
import os, signal, sys, time
from pathlib import Path

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])

def end_well(number, frame):
    (folder / f"saved-{rank}").write_text(str(number))
    sys.exit(128 + number)

def wait_for_the_end():
    (folder / f"ready-{rank}").touch()
    while True:
        signal.pause()

"""


def run_launcher(folder: Path, num_processes: int) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
    sys.stderr = os.fdopen(2, "w")
    tempfile.tempdir = str(folder)
    sys.exit(launch([str(folder / "job.py"), str(folder)], num_processes))


@pytest.fixture
def job(tmp_path):
    """`job(body, num_processes)` starts a process that launches a script of that body, and returns it."""
    started = []

    def start(body: str, num_processes: int = 2) -> multiprocessing.Process:
        (tmp_path / "job.py").write_text(JOB + body)
        # A fork has torch already, which takes seconds to import.
        process = multiprocessing.get_context("fork").Process(target=run_launcher, args=(tmp_path, num_processes))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def end_of(process: multiprocessing.Process, tmp_path: Path) -> tuple[int, str]:
    """The exit code, and what was written to the terminal."""
    process.join(timeout=120)
    return process.exitcode, (tmp_path / "out").read_text() + (tmp_path / "err").read_text()


def wait_for_files(process: multiprocessing.Process, tmp_path: Path, pattern: str) -> None:
    """Until each of the two processes has written one."""
    while len(list(tmp_path.glob(pattern))) < 2:
        assert process.is_alive()
        os.sched_yield()


def test_environment_is_that_of_torchrun(job, tmp_path):
    body = """
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR TORCHELASTIC_RUN_ID".split()
(folder / f"env-{rank}").write_text(" ".join(os.environ[name] for name in names))
import torch.distributed
torch.distributed.init_process_group("gloo")
(folder / f"size-{rank}").write_text(str(torch.distributed.get_world_size()))
torch.distributed.destroy_process_group()
"""
    assert end_of(job(body), tmp_path) == (0, "")
    first, second = ((tmp_path / f"env-{rank}").read_text().split() for rank in range(2))
    assert first[:5] == ["0", "0", "2", "2", "localhost"] and second[:5] == ["1", "1", "2", "2", "localhost"]
    assert first[5] == second[5]
    assert [(tmp_path / f"size-{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # nothing is left in the temporary folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_all_may_save(job, tmp_path, number):
    process = job(
        "signal.signal(signal.SIGTERM, end_well); signal.signal(signal.SIGINT, end_well); wait_for_the_end()"
    )
    wait_for_files(process, tmp_path, "ready-*")
    os.kill(process.pid, number)
    assert end_of(process, tmp_path) == (128 + number, "")
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in range(2)] == [str(int(number))] * 2


def test_a_second_signal_kills(job, tmp_path):
    process = job("signal.signal(signal.SIGINT, lambda *_: (folder / f'asked-{rank}').touch()); wait_for_the_end()")
    wait_for_files(process, tmp_path, "ready-*")
    os.kill(process.pid, signal.SIGINT)
    wait_for_files(process, tmp_path, "asked-*")
    os.kill(process.pid, signal.SIGINT)
    assert end_of(process, tmp_path) == (128 + signal.SIGKILL, "")


def test_a_signal_while_they_are_started_reaches_those_that_run(job, tmp_path, monkeypatch):
    start_one = api.get_subprocess_handler

    def start_one_and_signal(**kwargs):
        started = start_one(**kwargs)
        if kwargs["local_rank_id"] == 0:
            while not (tmp_path / "ready-0").exists():
                os.sched_yield()
            os.kill(os.getpid(), signal.SIGTERM)
        return started

    monkeypatch.setattr(api, "get_subprocess_handler", start_one_and_signal)
    process = job("signal.signal(signal.SIGTERM, signal.SIG_DFL if rank else end_well); wait_for_the_end()")
    assert end_of(process, tmp_path) == (128 + signal.SIGTERM, "")
    assert (tmp_path / "saved-0").exists()


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [
        ("sys.exit(3)", 3, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "error: a process was killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, ""),
    ],
)
def test_one_that_ends_ends_them_all(job, tmp_path, end, code, line):
    """With its code; the other one has the time to save."""
    body = f"""
signal.signal(signal.SIGTERM, signal.SIG_DFL if rank else end_well)
if rank == 1:
    while not (folder / "ready-0").exists():
        os.sched_yield()
    {end}
wait_for_the_end()
"""
    exit_code, written = end_of(job(body), tmp_path)
    assert exit_code == code
    assert (tmp_path / "saved-0").read_text() == str(int(signal.SIGTERM))
    assert written.startswith(line) and len(written.splitlines()) == (1 if line else 0)


FAILURE = """
sys.path.insert(0, {root!r})
from utils.launch import first_to_fail
with first_to_fail() as is_first:
    if is_first:
        print("what went wrong", file=sys.stderr)
sys.exit(2)
"""


def test_the_first_to_fail_says_why(job, tmp_path):
    assert end_of(job(FAILURE.format(root=str(ROOT)), 3), tmp_path) == (2, "what went wrong\n")


# The launcher is killed

ORPHAN = """
sys.path.insert(0, {root!r})
from utils.launch import ended_with_launcher
alive = open(folder / "alive", "w")
signal.signal(signal.SIGTERM, end_well if {ends_well} else signal.SIG_IGN)
with ended_with_launcher():
    wait_for_the_end()
"""


@pytest.mark.parametrize("ends_well", [True, False])
def test_processes_end_with_a_launcher_that_is_killed(job, tmp_path, monkeypatch, ends_well):
    """As on SIGTERM, with the time to save; what ignores it is killed when that time is over."""
    if not ends_well:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    process = job(ORPHAN.format(root=str(ROOT), ends_well=ends_well))
    wait_for_files(process, tmp_path, "ready-*")
    assert not select.select([alive], [], [], 0)[0]
    process.kill()
    assert select.select([alive], [], [], 60)[0] and os.read(alive, 1) == b""  # no process holds it open any more
    os.close(alive)
    saved = sorted(path.name for path in tmp_path.glob("saved-*"))
    assert saved == (["saved-0", "saved-1"] if ends_well else [])
    assert (tmp_path / "err").read_text().count("the launcher has ended") == 1


def test_a_launcher_that_has_ended_already(monkeypatch):
    monkeypatch.setenv("LAUNCHER_PID", str(os.getppid() + 1))
    with pytest.raises(EarlyEnd) as end, ended_with_launcher():
        pass
    assert end.value.exit_code == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("environment", "parent", "is_known"),
    [
        ({"WORLD_SIZE": "2"}, ["torchrun", "--nproc_per_node", "2", "scripts/run_x.py", "--lr", "1"], True),
        ({"WORLD_SIZE": "2"}, ["torchrun", "-m", "run_x"], True),
        ({"ACCELERATE_USE_CPU": "true"}, ["accelerate", "launch", "run_x.py"], True),
        ({"WORLD_SIZE": "2"}, ["/sbin/init"], False),  # it adopts a process whose launcher has ended
        ({"WORLD_SIZE": "2"}, [], False),
        ({}, ["bash", "job.sh", "run_x.py"], False),
    ],
)
def test_command_line_of_the_launcher(monkeypatch, environment, parent, is_known):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LAUNCHER_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("utils.launch._command_line", lambda pid: parent)
    monkeypatch.setattr("sys.argv", ["/home/me/run_x.py"])
    with ended_with_launcher() as command:
        assert command == (parent if is_known else None)
