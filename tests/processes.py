"""Processes that tests start and end: forked from the test's own, which has imported everything already."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import accelerate
import pytest
import torch
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from transformers import TrainerCallback

from utils.training.trainer import LMTrainer


SECONDS = 60  # to wait for a process that should have ended


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Forked:
    """Processes forked from this one that do the same work together.

    Args:
        log: the file that gets their stdout and stderr.
        work: what each of them does.
        patch: `patch(monkeypatch, rank)` changes something in each process before the work begins.
        num_processes: with 2 or more, the environment is that of a job of torchrun.
    """

    def __init__(self, log: Path, work: Callable[[], None], patch: Callable | None = None, num_processes: int = 1):
        self.log = log
        context = multiprocessing.get_context("fork")
        port = free_port()
        self.processes = [
            context.Process(target=self._run, args=(rank, work, patch, num_processes, port))
            for rank in range(num_processes)
        ]
        for process in self.processes:
            process.start()

    def _run(self, rank: int, work, patch, num_processes: int, port: int) -> None:
        os.setpgid(0, 0)  # a signal to its group reaches it and its workers
        with self.log.open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w")
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if num_processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1"}
            os.environ["MASTER_PORT"] = str(port)
            accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
            accelerate.state.GradientState._reset_state()
        code = 99
        try:
            with pytest.MonkeyPatch.context() as monkeypatch:
                if patch is not None:
                    patch(monkeypatch, rank)
                work()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        if torch.distributed.is_initialized() and code != 99:
            torch.distributed.destroy_process_group()
        os._exit(code)

    def wait(self, seconds: float = SECONDS) -> list[int]:
        """The exit codes; for a process that a signal ended, minus the signal's number."""
        for process in self.processes:
            process.join(seconds)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
                raise AssertionError(f"a process did not end:\n{self.output}")
        return [process.exitcode for process in self.processes]

    def wait_for_the_end_of(self, rank: int) -> int:
        """The exit code of the process `rank`; the others, which miss it, are then killed, as a launcher does."""
        self.processes[rank].join(SECONDS)
        for process in self.processes:
            process.kill()
        self.wait()
        return self.processes[rank].exitcode

    @property
    def output(self) -> str:
        return self.log.read_text()


def torchrun(log: Path, *words, **environment: str) -> Forked:
    """The launcher, forked. The processes that it starts are new ones."""

    def launch() -> None:
        try:
            torch.distributed.run.main([str(word) for word in words])
        except ChildFailedError as error:
            print(error, file=sys.stderr)
            sys.exit(1)

    def set_environment(monkeypatch, rank):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return Forked(log, launch, set_environment)


def at_step(step: int, action: Callable[[], None], of_rank: int = 0) -> Callable:
    """A patch for `Forked`: one process calls `action()` in the middle of an update (the first is 0)."""

    def patch(monkeypatch, rank):
        plain = LMTrainer.training_step

        def training_step(self, *args, **kwargs):
            loss = plain(self, *args, **kwargs)
            if self.state.global_step == step and rank == of_rank:
                action()
            return loss

        monkeypatch.setattr(LMTrainer, "training_step", training_step)

    return patch


def signal_oneself(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class Killed(Exception):
    """Ends a run in this process as abruptly as kill -9 ends another one: nothing in the suite catches it."""


@contextlib.contextmanager
def killed_after_checkpoint(script: ModuleType, step: int) -> Iterator[None]:
    """A run of the script in this block ends right after its checkpoint of update `step`."""

    class Kill(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Killed

    class Trainer(script.LMTrainer):
        def train(self, *args, **kwargs):
            self.add_callback(Kill)
            return super().train(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(script, "LMTrainer", Trainer)
        yield
