"""Signals in the tests of training, and in the processes that they start, are as in a terminal."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def _hangup_is_not_ignored() -> Iterator[None]:
    """`nohup` ignores SIGHUP, a choice that runs inherit and respect."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
