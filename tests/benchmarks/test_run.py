"""Which processes a run of the benchmarks starts, and what happens when one fails."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import run
from benchmarks.run import Failure, Plan, measure
from jaxmodels.benchmark import machine, report
from jaxmodels.benchmark import processes as process_module
from jaxmodels.benchmark.processes import Disagreement, Stopped
from jaxmodels.benchmark.worker import Job
from jaxmodels.training.allocator import ALLOCATOR_VARIABLES


TIMES = {"again": [0.011, 0.012], "eager": [0.02, 0.04], "jax": [0.01, 0.01]}


def plan(**changes: Any) -> Plan:
    few = {
        "models": ("glom",),
        "sizes": ("small",),
        "modes": ("forward",),
        "implementations": ("eager", "jax"),
    }
    return Plan(**few | {"rounds": 2, "threads": 1} | changes)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Collects the jobs instead of running them; all implementations take the same time and agree."""
    asked: list[Job] = []

    def run_process(job: Job, folder: Path, name: str) -> dict[str, Any]:
        asked.append(job)
        if len(job.implementations) == 1:
            return {"first_call_s": 3.0, "peak_mb": 500.0, "libraries_mb": 200.0, "flop": 1_000_000}
        times = {name: TIMES[name] for name in (*job.implementations, *["again"] * job.time_again)}
        one = dict.fromkeys(job.implementations, 0.0)
        return {"times": times, "warm_first_call_s": dict.fromkeys(one, 0.5), "errors": one}

    monkeypatch.setattr(run, "run_process", run_process)
    monkeypatch.setattr(run, "with_files", lambda job, folder: job)
    return asked


def report_progress(what: str, done: int, total: int | None) -> None: ...


def test_each_side_alone_and_then_all_in_turn(processes: list[Job], tmp_path: Path) -> None:
    ((_, cells),) = measure(plan(implementations=("jax", "eager")), tmp_path, report_progress)
    assert [job.implementations for job in processes] == [("eager",), ("jax",), ("eager", "jax")]
    assert [job.time_again for job in processes] == [False, False, True]
    eager, jax = cells
    assert (eager["median_ms"], eager["q1_ms"], eager["q3_ms"]) == pytest.approx((30, 25, 35))
    assert jax["again_ms"] == pytest.approx(11.5)
    assert "again_ms" not in eager
    assert jax["flop_per_s"] == pytest.approx(1e8)  # eager's count
    assert (jax["first_call_s"], jax["warm_first_call_s"], jax["peak_mb"]) == (3.0, 0.5, 500.0)


def test_a_quick_run_has_no_processes_of_one_side(processes: list[Job], tmp_path: Path) -> None:
    ((_, cells),) = measure(plan(alone=False), tmp_path, report_progress)
    assert [job.implementations for job in processes] == [("eager", "jax")]
    assert (cells[0]["first_call_s"], cells[0]["peak_mb"]) == (0.5, None)


def test_curves_come_last_and_name_their_places(processes: list[Job], tmp_path: Path) -> None:
    whole = plan(
        curves=True, alone=False, implementations=("eager", "compile", "jax"), modes=("forward", "train")
    )
    TIMES["compile"] = TIMES["eager"]
    found = list(measure(whole, tmp_path, report_progress))
    assert [job.point for job, _ in found] == [None, None, 0, 1, 2, 3, 4]
    assert found[-1][0].implementations == ("eager", "jax")
    assert (found[-1][1][0]["curve"], found[-1][1][0]["at"]) == ("levels, iterations", (9, 18))


def test_a_disagreement_ends_the_run_with_the_cells_before_it(
    processes: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = run.run_process

    def wrong(job: Job, folder: Path, name: str) -> dict[str, Any]:
        found = kind(job, folder, name)
        return found | {"errors": {"eager": 0.0, "jax": 0.1 if job.mode == "train" else 1e-6}, "times": {}}

    cells = measure(plan(alone=False, modes=("forward", "train")), tmp_path, report_progress)
    next(cells)
    monkeypatch.setattr(run, "run_process", wrong)
    with pytest.raises(
        Disagreement, match=r"glom small train float32: jax differs from eager by 0.1 of the largest"
    ):
        next(cells)


@pytest.mark.parametrize("error", [2.1e-3, float("nan"), float("inf")])
def test_what_is_too_far_off(error: float) -> None:
    (job, *_) = run.jobs(plan(), ("eager", "jax"))
    with pytest.raises(Disagreement, match="nothing was timed"):
        run.check_agreement(job, {"eager": 0.0, "jax": error})
    run.check_agreement(job, {"eager": 0.0, "jax": 1.9e-3})


def test_a_process_that_dies_is_quoted(tmp_path: Path) -> None:
    job = run.with_paths(run.jobs(plan(), ("jax",))[0], tmp_path)  # without weights
    with pytest.raises(
        Failure, match=r"(?s)glom small forward float32 with jax ended with status 1:.*no such weights file"
    ):
        run.run_process(job, tmp_path, "a")


def test_a_process_that_hangs_is_stopped_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "hang"
    program.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/child\nwait\n")
    program.chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(program))
    (job, *_) = run.jobs(plan(), ("jax",))
    began = time.monotonic()
    with pytest.raises(Stopped, match="with jax was stopped after 1 seconds"):
        run.run_process(job, tmp_path, "a", timeout=1)
    assert time.monotonic() - began < 10
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    for _ in range(100):
        if not child.exists() or "(zombie)" in (child / "status").read_text():
            return
        time.sleep(0.05)
    pytest.fail("its child runs on")


def test_matrix_products_that_die_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "executable", "false")
    with pytest.raises(Failure, match="matrix products on cpu ended with status 1"):
        machine.measured_peaks("cpu", tmp_path, 1)


def test_matrix_products_that_take_too_long_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "hang"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine.sys, "executable", str(program))
    with pytest.raises(Failure, match=r"on cpu took longer than 0\.2 seconds"):
        machine.measured_peaks("cpu", tmp_path, 1, timeout=0.2)


def test_processes_get_their_device_threads_and_fresh_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def answered(words: list[str], environment: dict[str, str], timeout: float, cwd: Path | None) -> Any:
        seen.update(environment)
        Path(words[-1]).write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(process_module, "run_to_end", answered)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/an/old/one")
    (job, *_) = run.jobs(plan(device="cuda"), ("jax",))
    assert run.run_process(job, tmp_path, "a") == {}
    assert (seen["JAX_PLATFORMS"], seen["OMP_NUM_THREADS"]) == ("cuda", "1")
    assert seen["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path))
    assert seen["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
    assert ALLOCATOR_VARIABLES.items() <= seen.items()  # for every side


def test_the_fused_kernel_is_for_bfloat16_only() -> None:
    both = plan(device="cuda", sizes=("gpu",), precisions=("float32", "bfloat16"), attention="cudnn")

    assert {job.precision: job.attention for job in run.jobs(both, ("jax",))} == {
        "float32": "auto",
        "bfloat16": "cudnn",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "models must name one or more, each once; got none"),
        ({"models": ("glom", "glom")}, "models must name one or more, each once; got glom glom"),
        ({"implementations": ()}, "implementations must name one or more"),
        ({"rounds": 0}, "rounds must be at least 2, for quartiles; got 0"),
        ({"rounds": 1}, "rounds must be at least 2, for quartiles; got 1"),
        ({"threads": 0}, "threads must be between 1 and"),
        ({"threads": 10_000}, "threads must be between 1 and .*; got 10000"),
        ({"budget": 0.0}, "budget must be a number of seconds above 0; got 0"),
        ({"budget": float("nan")}, "budget must be a number of seconds above 0; got nan"),
        ({"attention": "cudnn"}, "attention must be 'auto' or 'xla' without --device cuda and bfloat16"),
        (
            {"attention": "cudnn", "device": "cuda"},
            "attention must be 'auto' or 'xla' without --device cuda and bfloat16",
        ),
    ],
)
def test_plans_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_torchax_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "torchax_absence", lambda: "not installed")
    with pytest.raises(
        ValueError, match="implementations must name one besides torchax, which is missing: not"
    ):
        next(measure(plan(implementations=("torchax",)), tmp_path, report_progress))


def test_a_model_that_torchax_cannot_run_leaves_its_cell_empty(
    processes: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = run.run_process

    def dies(job: Job, folder: Path, name: str) -> dict[str, Any]:
        if job.implementations == ("torchax",):
            raise Failure(
                "glom ended:\n  File\ntorchax.OperatorNotFound: no lowering\n-----\nFor simplicity, no"
            )
        return kind(job, folder, name)

    monkeypatch.setattr(run, "run_process", dies)
    monkeypatch.setattr(run, "torchax_absence", lambda: None)
    ((job, cells),) = measure(plan(implementations=("eager", "torchax", "jax")), tmp_path, report_progress)
    assert job.implementations == ("eager", "jax")
    assert [cell["median_ms"] is None for cell in cells] == [False, True, False]
    assert cells[1]["failure"] == "torchax.OperatorNotFound: no lowering"
    assert "torchax fails in 1 rows: torchax.OperatorNotFound" in report.summary({"cells": cells})


def test_the_reason_is_the_last_line_of_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchax.py").write_text("def default_env(): raise AttributeError('no overload')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(run.metadata, "version", {"torchax": "0.1", "torch": "2"}.get)
    assert run.torchax_absence() == "torchax 0.1 with torch 2: AttributeError: no overload"
    (tmp_path / "torchax.py").write_text("def default_env(): ...\n")
    assert run.torchax_absence() is None
    assert sys.modules.get("torchax") is None
