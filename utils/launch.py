"""One command in many processes: start them as torchrun does, end them together, say once what went wrong."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from torch.distributed import DistError, TCPStore


logger = logging.getLogger(__name__)

# How many processes a launcher has started here: torchrun (of this machine, of all), or mpirun.
SIZES = ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
SECONDS_TO_SAVE = 600  # after a signal, for the step under way and a checkpoint; torchrun gives 30


def launched_processes() -> int | None:
    """How many processes of this machine a launcher has started, this one among them; None if there was none."""
    sizes = [os.environ[name] for name in SIZES if os.environ.get(name)]
    if sizes:
        return int(sizes[0])
    return 1 if "ACCELERATE_USE_CPU" in os.environ else None  # accelerate launch says no size to one process alone


def launch(command: list[str], num_processes: int) -> int:
    """Run a Python script in processes of this machine, with the environment that torchrun gives them.

    A signal that asks to end (SIGINT, SIGTERM, SIGHUP, SIGQUIT) goes to all of them, which then have
    `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` seconds (default 600) to save what they have; a second one kills them. When one
    process fails, the others get SIGTERM, and SIGKILL 30 seconds later.

    Args:
        command: the script's path and its arguments.

    Returns:
        0, or the exit code of the process that failed first; 128 + signal if a signal ended it.
    """
    # Here, since it takes a while and the started processes do not need it.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

    seconds_to_save = int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_SAVE))
    logging.disable(logging.ERROR)  # torch's lines about what is said here or by the processes
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # where the processes find each other
    shared = {
        "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1,
        "MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_RUN_ID": uuid.uuid4(), "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", max(1, len(os.sched_getaffinity(0)) // num_processes)),
    }  # fmt: skip
    ranks = range(num_processes)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        context = start_processes(
            name=Path(command[0]).name,
            entrypoint=sys.executable,
            args={rank: (*subprocess._args_from_interpreter_flags(), *command) for rank in ranks},
            envs={
                rank: {name: str(value) for name, value in {"RANK": rank, "LOCAL_RANK": rank, **shared}.items()}
                for rank in ranks
            },
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            failures = context.wait(period=0.1).failures
            return _first_exit_code(failures) if failures else 0
        except SignalException as stop:
            try:
                context.close(stop.sigval, seconds_to_save)
            except SignalException:
                context.close(signal.SIGKILL)
            return _exit_code(context.subprocess_handlers[0].proc.returncode) or 128 + stop.sigval


@contextlib.contextmanager
def first_to_fail() -> Iterator[bool]:
    """Within the block, whether this is the first process of its job on this machine to end with an error.

    It may say why: the others wait for the end of the block before they end, which would end it, too.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:  # no launcher that would end it
        yield int(os.environ.get("LOCAL_RANK", 0)) == 0
        return
    said = Path(error_file).parents[1] / "error_said"  # the folder of all processes of this machine
    with FileLock(f"{said}.lock"):
        yield not said.exists()
        said.touch()


def is_peer_failure(error: BaseException) -> bool:
    """Whether the error only says that another process of the job is gone or does not answer."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_exit_code(failures: dict) -> int:
    """Of the failed processes, by rank, in the order in which they were found to have ended."""
    # What kills a process without a word is the cause, also where another one complains about it at the same time.
    silent = [-failure.exitcode for failure in failures.values() if failure.exitcode < 0]
    silent = [number for number in silent if number not in (signal.SIGTERM, signal.SIGABRT)]
    if not silent:
        return _exit_code(next(iter(failures.values())).exitcode)
    name = signal.Signals(silent[0]).name
    hint = ", as when the memory is full" if silent[0] == signal.SIGKILL else ""
    print(f"error: a process was ended by {name}{hint}; the others were ended, too", file=sys.stderr)
    return 128 + silent[0]


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode
