"""Requests to stop: signals and the time limit, on which all processes agree."""

import os
import signal
import sys
import threading
import time

import torch

from utils.errors import EarlyEnd


SIGNALS = (signal.SIGTERM, signal.SIGINT)
TIME_IS_UP = 1  # a reason to stop besides the numbers of signals; signal 1 is not handled here
EX_TEMPFAIL = 75  # sysexits.h: temporary failure, try again
SECONDS_TO_FINISH_STEP = 300.0


class StopRequested(Exception):
    """Raised to leave an evaluation because the run is asked to stop."""


class StopRequests:
    """Receives SIGTERM and SIGINT, watches the time, and lets all processes agree to stop after the same step.

    Used as a context manager. Inside, a signal is only recorded; the trainer asks for it after each step. A second
    SIGINT ends the process at once. If one of several processes has not finished its step SECONDS_TO_FINISH_STEP after
    a signal, it is probably waiting for a process that is gone: it exits without saving.

    Args:
        max_hours: request a stop this many hours after the context was entered; None for no limit.
    """

    def __init__(self, max_hours: float | None = None):
        self.max_hours = max_hours
        self._received = 0
        self._group = None
        self._timer: threading.Timer | None = None
        self._old_handlers = {}

    def __enter__(self) -> "StopRequests":
        self._received = 0
        self._start = time.monotonic()
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            # A separate group on the CPU, so that asking after each step does not wait for the GPU.
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            self._old_handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, error_type: type | None, *error) -> None:
        """Restore the handlers, and raise a signal again that arrived after the last request.

        When several processes end early, their launcher repeats its signal to each of them while they exit: it is
        ignored then.
        """
        if self._timer is not None:
            self._timer.cancel()
        ends_early = error_type is not None and issubclass(error_type, EarlyEnd)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if self._old_handlers and ends_early and self._group is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif self._received and not ends_early:
            os.kill(os.getpid(), self._received)

    def _receive(self, number: int, frame) -> None:
        if not self._received:
            self._received = number
            name = signal.Signals(number).name
            text = f"{name}: finishing and saving this step first; Ctrl-C ends the run at once\n"
            os.write(sys.__stderr__.fileno(), text.encode())  # not a logger, which may be in use at this moment
            if self._group is not None:
                self._timer = threading.Timer(SECONDS_TO_FINISH_STEP, _exit_without_saving, [number])
                self._timer.daemon = True
                self._timer.start()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def requested(self) -> int:
        """Why this process wants to stop: the number of a signal, TIME_IS_UP, or 0."""
        if self._received:
            return self._received
        is_over = self.max_hours is not None and time.monotonic() - self._start > self.max_hours * 3600
        return TIME_IS_UP if is_over else 0

    def all_reduce_max(self, value: int) -> int:
        """The largest `value` of all processes, all of which call this; under 1 ms with two on two busy cores."""
        if self._group is None:
            return value
        values = torch.tensor(value)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=self._group)
        if self._timer is not None and values:
            self._timer.cancel()
        return int(values)

    def agreed(self) -> int:
        """Why the run is to stop, as all processes agree, or 0. All processes call this together."""
        return self.all_reduce_max(self.requested())


def reason_and_exit_code(request: int) -> tuple[str, int]:
    """The reason in words, and the exit code: 128 + signal, or 75 when the time is up."""
    if request == TIME_IS_UP:
        return "the time of --max_train_hours is up", EX_TEMPFAIL
    return f"stopped by {signal.Signals(request).name}", 128 + request


def ignore_signals(worker_id: int = 0) -> None:
    """For dataloader workers: a signal to the whole job must not end them before the step is finished."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit_without_saving(number: int) -> None:
    text = (
        f"the step did not end within {SECONDS_TO_FINISH_STEP:.0f} s of the signal; another process may be gone: "
        "nothing is saved\n"
    )
    os.write(sys.__stderr__.fileno(), text.encode())
    os._exit(128 + number)
