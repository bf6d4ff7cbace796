"""One measuring process: turns, agreement of the outputs, memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmodels.benchmark import measuring, worker
from jaxmodels.benchmark.measuring import difference, interleaved
from jaxmodels.benchmark.worker import Job, time_in_turn


JOB = Job(
    target="benchmarks/pairs/glom.py",
    size="small",
    mode="forward",
    implementations=("eager", "jax"),
    rounds=3,
    threads=1,
    files="f",
    time_again=True,
)


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "sides_of", lambda job: lambda name: {})


class Side:
    """A side that notes its calls."""

    def __init__(self, name: str, value: Any, calls: list[str]) -> None:
        self.name, self.value, self.calls = name, value, calls

    def __call__(self) -> np.ndarray:
        self.calls.append(self.name)
        return np.asarray(self.value, np.float32)


def test_sides_take_turns_and_the_order_turns_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(measuring, "MIN_SECONDS", 0.0)  # one call a turn
    times = interleaved({name: Side(name, 0, calls) for name in "abc"}, rounds=3)
    assert "".join(calls) == "aabbcc" + "abc" + "cba" + "abc"
    assert [len(times[name]) for name in "abc"] == [3, 3, 3]


def test_a_fast_side_is_repeated_within_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock) / 100)  # every look takes 10 ms
    calls: list[str] = []
    times = interleaved({"a": Side("a", 0, calls)}, rounds=2)
    assert len(calls) == 2 + 2 * (1 + 6)  # 60 ms are six calls; the first of a turn is not timed
    assert times["a"] == pytest.approx([0.01 / 6] * 2)


def test_sides_that_agree_are_timed_and_one_is_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(worker, "call_of", lambda job, name, side: Side(name, [1.0, 2.0], calls))
    monkeypatch.setattr(measuring, "MIN_SECONDS", 0.0)
    found = time_in_turn(JOB)
    assert set(found["times"]) == {"again", "eager", "jax"}
    assert found["errors"] == {"eager": 0.0, "jax": 0.0}
    # The second time is at the other end of the line: each of the two follows itself as often as it follows eager.
    assert calls[-9:] == ["jax", "eager", "jax", "jax", "eager", "jax", "jax", "eager", "jax"]


@pytest.mark.parametrize("value", [[1.0, 2.1], [1.0, np.nan], [1.0], [[1.0, 2.0]]])
def test_sides_that_disagree_are_not_timed(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    values = {"eager": [1.0, 2.0], "jax": value}
    monkeypatch.setattr(worker, "call_of", lambda job, name, side: Side(name, values[name], calls))
    found = time_in_turn(JOB)
    assert found["times"] == {}
    assert calls == ["eager", "jax"]
    assert not found["errors"]["jax"] <= 2e-3


def test_training_is_compared_before_and_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loss(Side):
        def __call__(self) -> np.ndarray:
            super().__call__()
            return np.float32(self.value[min(self.calls.count(self.name), 2) - 1])

    values = {"eager": [2.0, 1.998], "jax": [2.0, 2.0]}  # a side whose step changes nothing
    calls: list[str] = []
    monkeypatch.setattr(worker, "call_of", lambda job, name, side: Loss(name, values[name], calls))
    found = time_in_turn(replace(JOB, mode="train"))
    assert found["errors"]["jax"] == pytest.approx(0.2)  # 100% of what the step should have done
    assert found["times"] == {}


def test_a_loss_that_is_no_number_after_the_step_is_no_agreement() -> None:
    one, none = np.asarray(1.0), np.asarray(np.nan)
    assert np.isnan(difference([one, none], [one, one]))
    assert np.isnan(difference([none, one], [one, one]))


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    JOB.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == JOB


def test_memory_is_that_of_now_and_of_the_peak() -> None:
    before = measuring.resident("VmHWM")
    if before is None:
        pytest.skip("this system does not say")
    block = np.ones(60_000_000, np.uint8)
    assert measuring.resident("VmRSS") >= 60
    peak = measuring.resident("VmHWM")
    del block
    assert measuring.resident("VmHWM") > peak - 5  # the system counts roughly
    measuring.reset_peak()
    assert measuring.resident("VmHWM") < peak - 30
