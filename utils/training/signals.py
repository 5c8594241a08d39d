"""Ends that come from outside: signals and the limit of time, on which all processes agree."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time

import torch

from utils.errors import EarlyEnd


SIGNALS = (signal.SIGTERM, signal.SIGINT)
TIME_IS_UP = 1  # beside the numbers of signals, of which 1 is not received here
# sysexits.h: "temporary failure, the user is invited to try again".
EX_TEMPFAIL = 75
SECONDS_TO_AGREE = 300.0


class EvaluationCut(Exception):
    """An evaluation was left, since the run is to end."""


class Interruption:
    """Receives SIGTERM and SIGINT, watches the time, and lets all processes agree on when to end.

    Used as a context: inside it a signal is only noted, until the training asks for it after a step. The next SIGINT
    stops at once. A process that several share with others, and whose step does not end in SECONDS_TO_AGREE after a
    signal, waits for one that is gone: it ends without saving.

    Args:
        max_hours: ask for the end so many hours after the context was entered; None for no limit.
    """

    def __init__(self, max_hours: float | None = None):
        self.max_hours = max_hours
        self._received = 0
        self._group = None
        self._timer: threading.Timer | None = None
        self._old_handlers = {}

    def __enter__(self) -> "Interruption":
        self._received = 0
        self._start = time.monotonic()
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            # Of its own, on the CPU: to ask after every step must not wait for the GPU.
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._old_handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, error_type: type | None, *error) -> None:
        """Give the signals back, and one that came too late to be asked for.

        Of several processes that end early, all are on their way out, and their launcher repeats its signal to each:
        then it is ignored.
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
            text = f"{signal.Signals(number).name}: the step is finished and saved first; Ctrl-C ends at once\n"
            os.write(sys.__stderr__.fileno(), text.encode())  # a logger may be in use just now
            if self._group is not None:
                self._timer = threading.Timer(SECONDS_TO_AGREE, _give_up, [number])
                self._timer.daemon = True
                self._timer.start()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def requested(self) -> int:
        """Why this process wants to end: the number of a signal, TIME_IS_UP, or 0."""
        if self._received:
            return self._received
        is_over = self.max_hours is not None and time.monotonic() - self._start > self.max_hours * 3600
        return TIME_IS_UP if is_over else 0

    def all_reduce(self, value: int) -> int:
        """The greatest `value` of all processes, which call this together; below 1 ms with two on two busy cores."""
        if self._group is None:
            return value
        values = torch.tensor(value)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=self._group)
        if self._timer is not None and values:
            self._timer.cancel()
        return int(values)


def reason_and_exit_code(ending: int) -> tuple[str, int]:
    """What is said of an end that was agreed on, and the exit code: 128 + signal, or 75 when the time is up."""
    if ending == TIME_IS_UP:
        return "the time of --max_train_hours is up", EX_TEMPFAIL
    return f"stopped by {signal.Signals(ending).name}", 128 + ending


def leave_signals_to_the_main_process(worker_id: int = 0) -> None:
    """For the workers of a dataloader: signals to the whole job must not kill them before the step is finished."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    """multiprocessing would send SIGTERM to workers that are left, and wait for them."""
    children = multiprocessing.active_children()
    if children:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler reports each as an error
    for child in children:
        child.kill()


def _give_up(number: int) -> None:
    text = f"no end of the step {SECONDS_TO_AGREE:.0f} s after the signal, another process may be gone: not saved\n"
    os.write(sys.__stderr__.fileno(), text.encode())
    os._exit(128 + number)
