"""Requests to stop: signals and the time limit, in one process."""

import os
import signal

import pytest

from utils.errors import EarlyEnd
from utils.training.signals import TIME_IS_UP, StopRequests, reason_and_exit_code


@pytest.fixture(autouse=True)
def handlers():
    """Restored after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handlers_are_restored(handlers):
    with StopRequests() as stop_requests:
        assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
        assert stop_requests.requested() == 0
    assert {number: signal.getsignal(number) for number in handlers} == handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_recorded(number, handlers):
    with pytest.raises(EarlyEnd), StopRequests(max_hours=0) as stop_requests:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # repeated, as launchers do: the first one counts
        assert stop_requests.requested() == number
        assert stop_requests.agreed() == number
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the next one ends the process
        raise EarlyEnd("stopped", 128 + number)
    assert {number: signal.getsignal(number) for number in handlers} == handlers  # the program may continue after it
    assert reason_and_exit_code(number) == (f"stopped by {number.name}", 128 + number)


def test_signal_after_the_last_request():
    """Training has ended: what follows it is left at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
    with pytest.raises(KeyboardInterrupt), StopRequests():
        os.kill(os.getpid(), signal.SIGINT)


def test_time():
    with StopRequests(max_hours=1) as stop_requests:
        assert stop_requests.requested() == 0
        stop_requests._start -= 3600
        assert stop_requests.requested() == TIME_IS_UP
    assert reason_and_exit_code(TIME_IS_UP)[1] == 75
    with StopRequests() as stop_requests:
        stop_requests._start -= 1e9
        assert stop_requests.requested() == 0
