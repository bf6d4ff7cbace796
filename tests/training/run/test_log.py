"""The clock of a run."""

import pytest

from jaxmodels.training.run import log
from jaxmodels.training.run.log import Clock


def test_only_steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    clock = Clock(3)
    now += 50  # compilation
    assert clock.restart(4) == 50
    now += 2
    with clock.paused():  # evaluation
        now += 7
    now += 2
    assert clock.steps_per_second(14) == 2.5
    now += 1
    assert clock.steps_per_second(14) == 0  # no step since
    now += 3
    assert clock.steps_per_second(15) == pytest.approx(1 / 3)
    assert clock.total == 7
