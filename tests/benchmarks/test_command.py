"""The flags of `python -m benchmarks`; nothing is measured."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import budget, pages, run
from benchmarks.run import Failure, Plan
from jaxmodels.benchmark import machine, rows
from jaxmodels.benchmark.processes import Disagreement
from tests.benchmarks.sample_results import ENVIRONMENT, cell, results


def call(*flags: str) -> int:
    return command.main(flags)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Collects the plans instead of measuring them; the result is one row."""
    plans: list[Plan] = []

    class Timed:
        point = None

    def measure(plan: Plan, folder: Path, report_progress: Any) -> Any:
        plans.append(plan)
        report_progress("glom", 0, 2)
        yield Timed, [cell("eager", 10.0), cell("jax", 8.0)]

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "torchax_absence", lambda: "not installed")
    monkeypatch.setattr(run, "torchax_absence", lambda: "not installed")
    monkeypatch.setattr(machine, "measured_peaks", lambda *_: {"float32": 1e11})
    monkeypatch.setattr(machine, "environment", lambda *_: dict(ENVIRONMENT, busy_cores=0.0))
    monkeypatch.setattr(machine, "require", lambda device: None)
    return plans


def test_a_quick_run(measured: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--quick", "--output", str(tmp_path / "out")) == 0
    (plan,) = measured
    assert (plan.sizes, plan.implementations, plan.rounds) == (("small",), ("eager", "jax"), 5)
    assert not plan.alone
    assert not plan.curves
    found = rows.read(tmp_path / "out" / "results.json")
    assert found["workloads"].keys() == {f"{model} small" for model in plan.models}
    printed = capsys.readouterr().out
    assert "[1/2] glom" in printed
    assert "**0.80" in printed
    assert (tmp_path / "out" / "report.html").exists()


def test_a_full_run_and_one_on_a_gpu(measured: list[Plan], tmp_path: Path) -> None:
    call("--output", str(tmp_path))
    call("--device", "cuda", "--output", str(tmp_path))
    whole, gpu = measured
    assert (whole.sizes, whole.precisions, whole.alone, whole.curves) == (
        ("small", "medium"),
        ("float32",),
        True,
        True,
    )
    assert (gpu.sizes, gpu.precisions, gpu.curves) == (("gpu",), ("float32", "bfloat16"), False)
    assert rows.read(tmp_path / "results.json")["floors"]["glom"]["forward"] > 1


def test_a_run_with_a_budget_saves_every_row_and_lists_the_others(
    measured: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[int] = []

    def within(planned: Any, folder: Path, clock: Any, report_progress: Any) -> Any:
        assert clock.left() <= 50
        for job in planned[:2]:
            sides = zip(("eager", "jax"), (10.0, 8.0), strict=True)
            yield (
                job,
                [cell(*side, model=run.pair_of(job).name, mode=job.mode, size=job.size) for side in sides],
                None,
            )
            saved.append(len(rows.read(tmp_path / "out" / "results.json")["cells"]))
        yield planned[2], [], "colt5 medium train float32: no"

    monkeypatch.setattr(budget, "measure_within", within)
    monkeypatch.setattr(budget, "prepare", lambda *_: {"float32": 1e11})
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "kept")
    flags = [
        "--budget",
        "60",
        "--keep",
        "--models",
        "glom",
        "hourglass",
        "colt5",
        "--output",
        str(tmp_path / "out"),
    ]
    assert call(*flags) == 1
    assert saved == [2, 4]
    found = rows.read(tmp_path / "kept" / "cpu.json")
    assert [c["model"] for c in found["cells"]] == ["glom"] * 2 + ["hourglass"] * 2
    reasons = list(found["unfinished"].values())
    assert (len(reasons), reasons.count("not reached")) == (10, 9)
    printed = capsys.readouterr().out
    assert "benchmarks: colt5 medium train float32: no" in printed
    assert "Not reached: glom medium forward float32," in printed


def test_a_budget_for_nothing_says_so(
    measured: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "measure_within", lambda *_: iter(()))
    monkeypatch.setattr(budget, "prepare", lambda *_: {})
    assert call("--budget", "1", "--models", "glom", "--sizes", "small", "--output", str(tmp_path)) == 0
    assert "Not reached: glom small train float32, glom small forward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("Tesla T4", "t4"), ("A GPU/x", "a-gpu-x")],
)
def test_results_are_named_by_their_gpu(device: str, name: str) -> None:
    assert machine.short_name(device) == name


def test_on_a_gpu_a_budget_leaves_torchax_out_unless_asked(measured: list[Plan]) -> None:
    options = command.Options(device="cuda", budget=480)
    assert options.plan().implementations == ("eager", "compile", "jax")
    assert command.Options(budget=480).plan().implementations == ("eager", "compile", "torchax", "jax")
    asked = command.Options(device="cuda", budget=480, implementations=("torchax", "jax")).plan()
    assert asked.implementations == ("torchax", "jax")
    assert not asked.alone


def test_changes_are_printed(
    measured: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write(results(cell("eager", 10.0), cell("jax", 4.0)), tmp_path)
    call("--output", str(tmp_path / "out"), "--compare", str(tmp_path / "results.json"))
    assert "JAX / eager 0.40 → 0.80 (+100%" in capsys.readouterr().out


@pytest.mark.parametrize("error", [Disagreement, Failure])
def test_an_error_keeps_what_was_measured(
    error: type[Exception], measured: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = command.measure

    def stopped(*arguments: Any) -> Any:
        yield from kind(*arguments)
        raise error("glom small train: no")

    monkeypatch.setattr(command, "measure", stopped)
    assert call("--output", str(tmp_path)) == 1
    assert len(rows.read(tmp_path / "results.json")["cells"]) == 2
    assert (tmp_path / "results.md").exists()


def test_a_busy_machine_is_said(
    measured: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "environment", lambda *_: dict(ENVIRONMENT, busy_cores=1.4))
    call("--output", str(tmp_path))
    assert "other processes keep 1.4 of" in capsys.readouterr().out
    assert "(1.4 of 2 cores busy with other processes)" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models"], "models must name one or more"),
        (["--budget", "-1"], "budget must be a number of seconds above 0; got -1"),
        (["--rounds", "0"], "rounds must be at least 2"),
        (["--threads", "10000"], "threads must be between 1 and"),
        (["--quick", "--implementations", "compile"], "implementations must name one or more"),
        (["--compare", "gone.json"], "no such results file: gone.json"),
    ],
)
def test_flags_that_make_no_sense(
    flags: list[str], message: str, measured: list[Plan], tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call("--output", str(tmp_path / "out"), *flags)
    assert not measured
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(measured: list[Plan], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match=r"output must be a folder; got .*out"):
        call("--output", str(tmp_path / "out"))


def test_busy_cores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["cpu  100 0 0 100 0 0 0 0 0 0\n", "cpu  150 0 0 140 10 0 0 0 0 0\n"])
    monkeypatch.setattr(Path, "read_text", lambda self: next(lines))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    assert machine.busy_cores(0) == 2.0  # half of the ticks
