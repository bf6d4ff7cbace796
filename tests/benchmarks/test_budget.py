"""A run with a budget: what comes first, that it ends in time, and what becomes of rows that fail. No process is started."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import budget, run
from benchmarks.run import Failure, Plan, job_name
from jaxmodels.benchmark import machine
from jaxmodels.benchmark.processes import Stopped
from jaxmodels.benchmark.worker import Job


class Machine:
    """Stands for the processes. Every one takes its time on a clock of its own, and may fail.

    Attributes:
      now: seconds.
      asked: the jobs in the order in which they began.
      cost: seconds that a job takes.
      error: why a job fails; empty if it does not.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[Job] = []
        self.cost: Callable[[Job], float] = lambda job: 0 if job.compile_only else 10
        self.error: Callable[[Job], str] = lambda job: ""

    def run_process(
        self, job: Job, folder: Path, name: str, *, module: str = "", timeout: float = 1e9
    ) -> dict[str, Any]:
        self.asked.append(job)
        cost = self.cost(job)
        self.now += min(cost, timeout)
        if cost > timeout:
            raise Stopped(f"{job_name(job)} was stopped")
        if self.error(job):
            raise Failure(f"ended with status 1:\n{self.error(job)}")
        if job.compile_only or module == "benchmarks.prepare":
            return {"first_call_s": 3.0}
        one = dict.fromkeys(job.implementations, 0.0)
        return {
            "times": {name: [0.1, 0.1] for name in one},
            "warm_first_call_s": one,
            "errors": one,
            "flop": 7,
        }

    def measure(self, plan: Plan, seconds: float) -> tuple[list[Job], list[tuple[str, list, str | None]]]:
        """The planned rows, and what was found."""
        rows = budget.rows_by_value(plan)
        clock = budget.Clock(seconds + budget.RESERVE, lambda: self.now)
        found = budget.measure_within(rows, Path("unused"), clock, lambda *_: None)
        return rows, [(job_name(job), cells, trouble) for job, cells, trouble in found]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Machine:
    fake = Machine()
    monkeypatch.setattr(budget, "run_process", fake.run_process)
    monkeypatch.setattr(budget, "with_files", lambda job, folder: job)
    monkeypatch.setattr(run, "torchax_absence", lambda: None)
    monkeypatch.setattr(budget, "LANES", 1)  # so that the order is known
    return fake


def plan(**changes: Any) -> Plan:
    few = {"models": ("glom", "colt5"), "sizes": ("small", "medium"), "rounds": 2, "threads": 1}
    return Plan(**few | changes)


def on_gpu(**changes: Any) -> Plan:
    gpu = {"sizes": ("gpu",), "device": "cuda", "precisions": ("float32", "bfloat16")}
    return plan(implementations=("eager", "compile", "jax"), **gpu | changes)


def test_bfloat16_large_sizes_and_training_come_first(processes: Machine) -> None:
    planned = budget.rows_by_value(plan(precisions=("float32", "bfloat16"), models=("glom",)))
    assert [job_name(job) for job in planned] == [
        f"glom {size} {mode} {precision}"
        for precision in ("bfloat16", "float32")
        for size in ("medium", "small")
        for mode in ("train", "forward")
    ]
    assert all(job.count_flop and job.time_again for job in planned)


def test_all_rows_with_all_columns_if_there_is_time(processes: Machine) -> None:
    rows, found = processes.measure(plan(), 81)
    assert [name for name, *_ in found] == [job_name(job) for job in rows]
    assert len(rows) == 8
    for _, cells, trouble in found:
        assert [cell["implementation"] for cell in cells] == ["eager", "compile", "torchax", "jax"]
        assert trouble is None
        assert cells[0]["flop"] == 7


def test_it_ends_in_time_whatever_a_row_takes(processes: Machine) -> None:
    processes.cost = lambda job: 1e6 if job.size == "small" else 10
    rows, found = processes.measure(plan(), 75)
    assert [name for name, *_ in found] == [job_name(job) for job in rows[:4]]
    assert processes.now == 75  # the fifth row was stopped, and no sixth begun
    assert len(processes.asked) == 5


def test_no_row_is_begun_in_less_time_than_any_has_taken(processes: Machine) -> None:
    _, found = processes.measure(plan(), 49)
    assert len(found) == len(processes.asked) == 4


@pytest.mark.parametrize("culprit", ["torchax", "eager"])
def test_a_row_goes_on_without_what_fails_in_it(culprit: str, processes: Machine) -> None:
    processes.error = lambda job: f"{culprit}.Error: no" if culprit in job.implementations else ""
    columns = ("eager", "compile", "jax") if culprit == "eager" else ("eager", "torchax", "jax")
    _, found = processes.measure(plan(implementations=columns), 1000)
    assert len(found) == 8
    for _, cells, trouble in found:
        assert trouble is None
        failed = [cell for cell in cells if cell.get("failure")]
        assert [(cell["implementation"], cell["failure"]) for cell in failed] == [
            (culprit, f"{culprit}.Error: no")
        ]
        assert sum(cell["median_ms"] is not None for cell in cells) == 2


def test_a_row_that_fails_is_reported_and_the_next_one_measured(processes: Machine) -> None:
    processes.error = lambda job: "Error: no" if run.pair_of(job).name == "glom" else ""
    _, found = processes.measure(plan(), 1000)
    assert [(cells == [], trouble is None) for _, cells, trouble in found] == [
        (True, False),
        (False, True),
    ] * 4
    assert "Error: no" in found[0][2]


def test_what_disagrees_is_reported(processes: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = processes.run_process
    monkeypatch.setattr(budget, "run_process", lambda *a, **k: kind(*a, **k) | {"errors": {"jax": 0.5}})
    _, found = processes.measure(plan(), 1000)
    assert all("nothing was timed" in trouble for *_, trouble in found)


def test_on_a_gpu_all_programs_are_compiled_before_anything_is_timed(processes: Machine) -> None:
    rows, found = processes.measure(on_gpu(), 1000)
    half = len(rows) // 2
    compiled = [(name, job_name(job)) for name in ("jax", "compile") for job in rows]
    first, second = (
        [pair for pair in compiled if precision in pair[1]] for precision in ("bfloat16", "float32")
    )
    asked = [
        (job.implementations[0] if job.compile_only else "all", job_name(job)) for job in processes.asked
    ]
    timed = [("all", job_name(job)) for job in rows]
    assert asked == first + timed[:half] + second + timed[half:]
    assert [cell["first_call_s"] for cell in found[0][1]] == [0.0, 3.0, 3.0]  # eager compiles nothing


def test_compiling_may_fail_or_take_too_long(processes: Machine) -> None:
    processes.error = lambda job: "Error: no memory" if job.compile_only and job.mode == "train" else ""
    processes.cost = lambda job: 1e6 if job.compile_only and job.implementations == ("compile",) else 10
    rows, found = processes.measure(on_gpu(precisions=("bfloat16",)), 200)
    assert len(found) == len(rows)
    assert processes.now == 100 + 10 * len(rows)  # half of the time went into compiling


def test_weights_and_the_peak_come_first(processes: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.cost = lambda job: 0
    monkeypatch.setattr(machine, "measured_peaks", lambda *_, timeout: {"float32": timeout})
    clock = budget.Clock(100, lambda: processes.now)
    rows = budget.rows_by_value(on_gpu())
    assert budget.prepare(rows, Path("unused"), clock) == {"float32": 90}
    assert sorted(run.pair_of(job).name for job in processes.asked) == ["colt5", "glom"]

    def fails(*_: Any, timeout: float) -> dict[str, float]:
        raise Failure("no")

    monkeypatch.setattr(machine, "measured_peaks", fails)
    assert budget.prepare(rows, Path("unused"), clock) == {}


def test_cells_stand_in_the_order_of_the_tables(processes: Machine) -> None:
    whole = plan()
    _, found = processes.measure(whole, 1000)
    cells = budget.in_order([cell for _, cells, _ in found for cell in cells], whole)
    names = [(cell["size"], cell["model"], cell["mode"]) for cell in cells[::4]]
    assert names[:3] == [
        ("small", "glom", "forward"),
        ("small", "glom", "train"),
        ("small", "colt5", "forward"),
    ]
