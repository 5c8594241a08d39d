"""Environment variables: read here, and written only here.

Launchers (torchrun, `accelerate launch`, mpirun) tell a process its place in the job through them, and accelerate
takes its settings from them.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


# The number of processes on this machine or in the whole job, as torchrun and mpirun set it.
SIZES = ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
ACCELERATE_PREFIXES = ("ACCELERATE_", "FSDP_")


# This process's place in the job


def rank() -> int:
    """This process's number in the job, from 0."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """The number of processes in the job."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int | None:
    """The number of the job's processes on this machine; None if no launcher has set it."""
    size = os.environ.get("LOCAL_WORLD_SIZE")
    return None if size is None else int(size)


def num_machines() -> int:
    """The number of machines in a torchrun job."""
    return int(os.environ.get("GROUP_WORLD_SIZE", 1))


def launched_processes() -> int | None:
    """The number of processes that a launcher has started on this machine, including this one; None without one."""
    sizes = [os.environ[name] for name in SIZES if os.environ.get(name)]
    if sizes:
        return int(sizes[0])
    return 1 if "ACCELERATE_USE_CPU" in os.environ else None  # accelerate launch sets no size for a single process


def master_address() -> str:
    """The host of the job's key-value store. Raises KeyError outside a job."""
    return os.environ["MASTER_ADDR"]


def master_port() -> int:
    """The port of the job's key-value store. Raises KeyError outside a job."""
    return int(os.environ["MASTER_PORT"])


# torchrun, or launch() in its place


def is_started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def launcher_pid() -> int | None:
    """The process ID of the launcher, if it is launch(), which sets it; None under other launchers or none."""
    pid = os.environ.get("LAUNCHER_PID")
    return None if pid is None else int(pid)


def torchrun_error_file() -> Path | None:
    """Where torchrun expects this process to describe its failure; None without torchrun."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(path) if path else None


def shutdown_timeout(default: int) -> int:
    """Seconds that processes get to end after a signal."""
    return int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", default))


def openmp_threads(default: int) -> str:
    """Threads of each process for matrix products on the CPU, as OpenMP reads them: 4, or 4,2 for nested regions."""
    return os.environ.get("OMP_NUM_THREADS", str(default))


# accelerate


def launcher_precision() -> str | None:
    """The mixed precision that `accelerate launch` was given: no, fp16, bf16 or fp8; None without that launcher."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION")


def launcher_uses_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def launcher_uses_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def accelerate_variables() -> dict[str, str]:
    """All variables that accelerate takes settings from."""
    return {name: value for name, value in os.environ.items() if name.startswith(ACCELERATE_PREFIXES)}


@contextlib.contextmanager
def temporary_environment(**variables: str | None) -> Iterator[None]:
    """Set environment variables within the block; None removes one.

    Afterwards, these variables and all `accelerate_variables()` are as they were before: transformers and accelerate
    write their choices into the latter, where the next run in this process would take them for the launcher's.
    """
    before = {name: os.environ.get(name) for name in variables} | accelerate_variables()
    _write(variables)
    try:
        yield
    finally:
        _write(dict.fromkeys(accelerate_variables()) | before)


def _write(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
