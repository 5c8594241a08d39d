"""One command in several processes: start them as torchrun does, end them together, report an error once."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock
from torch.distributed import DistError, TCPStore

from utils.environment import (
    launched_processes,
    launcher_pid,
    local_rank,
    openmp_threads,
    shutdown_timeout,
    torchrun_error_file,
)
from utils.errors import EarlyEnd


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
SECONDS_TO_SAVE = 600  # after a signal: to finish the current step and write a checkpoint; torchrun allows 30
SECONDS_BETWEEN_LOOKS = 1.0  # at whether the launcher is alive


def launch(command: list[str], num_processes: int) -> int:
    """Run a Python script in several processes on this machine, in the environment that torchrun would give them.

    A signal that asks this process to end (SIGINT, SIGTERM, SIGHUP, SIGQUIT) is passed on to all of them. They then
    have `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` seconds (default 600) to save; a second signal kills them. When one process
    fails, the others get SIGTERM, and SIGKILL 30 seconds later. If this process itself is killed, they notice it; see
    `ended_with_launcher`.

    Args:
        command: the path of the script and its arguments.

    Returns:
        0, or the exit code of the process that failed first; 128 + signal if a signal ended it.
    """
    # Imported here because it is slow to import and the started processes do not need it.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

    seconds_to_save = shutdown_timeout(default=SECONDS_TO_SAVE)
    logging.disable(logging.ERROR)  # torch would repeat what is printed below or by the processes
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # the processes meet here
    shared = {
        "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1,
        "MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_RUN_ID": uuid.uuid4(), "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0,
        "LAUNCHER_PID": os.getpid(),
        "OMP_NUM_THREADS": openmp_threads(default=max(1, len(os.sched_getaffinity(0)) // num_processes)),
    }  # fmt: skip
    ranks = range(num_processes)

    def raise_signal(number: int, frame) -> None:
        raise SignalException("stop", signal.Signals(number))

    received = []
    _handle_signals(lambda number, frame: received.append(number))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ThreadPoolExecutor(1) as thread:
        # An exception here would lose the processes that have just been started. In a thread, torch sets no handlers.
        context = thread.submit(
            start_processes,
            name=Path(command[0]).name,
            entrypoint=sys.executable,
            args={rank: (*subprocess._args_from_interpreter_flags(), *command) for rank in ranks},
            envs={
                rank: {name: str(value) for name, value in {"RANK": rank, "LOCAL_RANK": rank, **shared}.items()}
                for rank in ranks
            },
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        ).result()
        try:
            _handle_signals(raise_signal)
            if received:
                raise_signal(received[0], None)
            failures = context.wait(period=0.1).failures
            return _first_exit_code(failures) if failures else 0
        except SignalException as stop:
            try:
                context.close(stop.sigval, seconds_to_save)
            except SignalException:
                context.close(signal.SIGKILL)
            return _exit_code(context.subprocess_handlers[0].proc.returncode) or 128 + stop.sigval


@contextlib.contextmanager
def ended_with_launcher() -> Iterator[list[str] | None]:
    """Within the block, a process that a launcher has started ends soon after that launcher has.

    A launcher that is killed by SIGKILL cannot end its processes. Each of them then sends itself SIGTERM, as the
    launcher would have: during training they all save a checkpoint after the same step, and end. What still runs
    `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` seconds (default 600) later is killed. The launcher may be `launch`, torchrun,
    `accelerate launch` or mpirun.

    Yields:
        The launcher's command line; None if there is no launcher, or it is not known.

    Raises:
        EarlyEnd: the launcher has ended already.
    """
    launcher, command = os.getppid(), _command_line(os.getppid())
    if launcher_pid() not in (None, launcher):
        raise EarlyEnd("the process that started this one has ended", 128 + signal.SIGTERM)
    # What has adopted an orphan does not name its script.
    is_known = launcher_pid() is not None or Path(sys.argv[0]).stem in {Path(word).stem for word in command}
    if launched_processes() is None or not is_known:
        yield None
        return
    is_over = threading.Event()
    threading.Thread(target=_end_with, args=(launcher, is_over), name="launcher", daemon=True).start()
    try:
        yield command or None
    finally:
        is_over.set()


def _end_with(launcher: int, is_over: threading.Event) -> None:
    while os.getppid() == launcher:
        if is_over.wait(SECONDS_BETWEEN_LOOKS):
            return
    os.kill(os.getpid(), signal.SIGTERM)
    if local_rank() == 0:
        print("the launcher has ended: its processes end too, as on SIGTERM", file=sys.stderr, flush=True)
    time.sleep(shutdown_timeout(default=SECONDS_TO_SAVE))
    os._exit(128 + signal.SIGTERM)


def _command_line(pid: int) -> list[str]:
    """The words of a process's command line; none where the system does not tell them, unlike Linux."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    except OSError:
        return []


@contextlib.contextmanager
def first_to_fail() -> Iterator[bool]:
    """Within the block, tell whether this process is the first of its job on this machine to end with an error.

    If so, it reports the error inside the block. The others wait for that before they exit, because the launcher
    stops all processes as soon as one of them exits.
    """
    error_file = torchrun_error_file()
    if error_file is None:  # no launcher that would end this process
        yield local_rank() == 0
        return
    reported = error_file.parents[1] / "error_reported"  # in the folder that all processes on this machine share
    with FileLock(f"{reported}.lock"):
        yield not reported.exists()
        reported.touch()


def is_peer_failure(error: BaseException) -> bool:
    """Whether the error only reports that another process of the job has ended or does not respond."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _handle_signals(handler: Callable) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


def _first_exit_code(failures: dict) -> int:
    """The exit code of the first failure; `failures` maps ranks to failures, in the order in which they were found."""
    # A process killed by a signal is the cause, even if another process reports its absence at the same time.
    killed = [-failure.exitcode for failure in failures.values() if failure.exitcode < 0]
    killed = [number for number in killed if number not in (signal.SIGTERM, signal.SIGABRT)]
    if not killed:
        return _exit_code(next(iter(failures.values())).exitcode)
    name = signal.Signals(killed[0]).name
    hint = ", which happens when memory runs out" if killed[0] == signal.SIGKILL else ""
    print(f"error: a process was killed by {name}{hint}; the others were stopped too", file=sys.stderr)
    return 128 + killed[0]


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode
