"""Signals and the limit of time, in one process."""

import os
import signal

import pytest

from utils.errors import EarlyEnd
from utils.training.signals import TIME_IS_UP, Interruption, reason_and_exit_code


@pytest.fixture(autouse=True)
def handlers():
    """As they were, after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handlers_are_given_back(handlers):
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
        assert interruption.requested() == 0
    assert {number: signal.getsignal(number) for number in handlers} == handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_noted(number, handlers):
    with pytest.raises(EarlyEnd), Interruption(max_hours=0) as interruption:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # repeated, as launchers do: the first one counts
        assert interruption.requested() == number
        assert interruption.all_reduce(interruption.requested()) == number
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the next one ends the process
        raise EarlyEnd("stopped", 128 + number)
    assert {number: signal.getsignal(number) for number in handlers} == handlers  # a program may go on after it
    assert reason_and_exit_code(number) == (f"stopped by {number.name}", 128 + number)


def test_signal_that_came_too_late():
    """The training has ended; what follows is left at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)


def test_time():
    with Interruption(max_hours=1) as interruption:
        assert interruption.requested() == 0
        interruption._start -= 3600
        assert interruption.requested() == TIME_IS_UP
    assert reason_and_exit_code(TIME_IS_UP)[1] == 75
    with Interruption() as interruption:
        interruption._start -= 1e9
        assert interruption.requested() == 0
