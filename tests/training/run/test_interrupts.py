"""Signals: which are heard, which are left alone."""

import os
import signal

import pytest

from jaxmodels.training.run.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_noted(number: signal.Signals) -> None:
    messages: list[str] = []
    with Interrupts(messages.append) as interrupts:
        assert not interrupts.requested(1)
        os.kill(os.getpid(), number)
        assert interrupts.requested(2)
        assert interrupts.status == 128 + number
    assert len(messages) == 1


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts(print) as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupts.requested(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with Interrupts(print):
        pass
    assert [signal.getsignal(number) for number in numbers] == before
