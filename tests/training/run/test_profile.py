"""Which steps are traced."""

from pathlib import Path

import jax
import pytest

from jaxmodels.training.run.profile import Profile


@pytest.mark.parametrize(
    ("steps", "traced"),
    [(100, range(10, 15)), (12, range(10, 13)), (10, range(10, 11)), (3, range(3, 4)), (1, range(1, 2))],
)
def test_some_steps_of_every_session(
    steps: int, traced: range, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(jax.profiler, "start_trace", calls.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = Profile(tmp_path, steps=steps, active=True)
    for number in range(1, steps + 1):
        with profile.step(number):
            calls.append(number)
    begin, end = calls.index(str(tmp_path / "profile")), calls.index("stop")
    assert calls[begin + 1 : end] == list(traced)
    assert len(calls) == steps + 2


def test_a_session_that_ends_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = Profile(tmp_path, steps=100, active=True)
    with profile.step(10):
        pass
    profile.stop()
    profile.stop()
    assert calls == ["start", "stop"]
