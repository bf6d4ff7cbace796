"""`python -m benchmarks`: what running these models in JAX gains, and what it costs."""

import contextlib
import sys
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import budget, pages, roofline
from benchmarks.changes import changes_since
from benchmarks.pairs import PAIRS
from benchmarks.prepare import make_weights_here
from benchmarks.run import Plan, ReportProgress, job_name, measure, torchax_absence
from jaxmodels.benchmark import machine, report, rows
from jaxmodels.benchmark.kinds import IMPLEMENTATIONS, Device, Implementation, Precision
from jaxmodels.benchmark.machine import Failure
from jaxmodels.benchmark.processes import Disagreement
from jaxmodels.models import MODEL_NAMES, ModelName


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time JAX against PyTorch on equal weights and inputs, after checking that both compute the same.

    Writes results.json, tables (results.md, report.html) and plots. All times of a row come from one process in which
    the implementations take turns. First calls and memory come from processes that hold one implementation alone.

    Attributes:
      quick: small sizes, eager PyTorch and JAX only, no curves: two minutes.
      budget: seconds that the run may take: the most valuable rows first, no curves, and first calls and memory only as
        far as the rows themselves show them. What was not reached is listed.
      output: folder for the results.
      keep: also write the results to benchmarks/results, as cpu.json or under the name of the GPU, such as h200.json. A
        run with torchax and without torch.compile becomes cpu-torchax.json.
      compare: an earlier results.json; prints what changed by more than the noise.
      models: which of the five.
      sizes: sizes of the models on a CPU; a GPU has a size of its own.
      implementations: the columns; by default all, on a GPU with --budget all but torchax.
      device: where all implementations run.
      precisions: types of the computation; by default float32 on a CPU, float32 and bfloat16 on a GPU.
      attention: JAX's attention kernel in bfloat16: by default ("auto") that of NVIDIA GPUs where it pays.
      rounds: how often every implementation is timed in a row; by default 9, or 5 with --quick or --budget.
      threads: cores that every implementation may use.
      curves: also measure how time and memory grow with the size of the input.
      tables: measure nothing; write the tables on the pages from benchmarks/results.
    """

    quick: bool = False
    budget: float | None = None
    keep: bool = False
    output: Path = Path("out/benchmarks")
    compare: Path | None = None
    models: tuple[ModelName, ...] = MODEL_NAMES
    sizes: tuple[Literal["small", "medium"], ...] = ("small", "medium")
    implementations: tuple[Implementation, ...] | None = None
    device: Device = "cpu"
    precisions: tuple[Precision, ...] | None = None
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    rounds: int | None = None
    threads: int = machine.cores()
    curves: bool = True
    tables: bool = False

    def plan(self) -> Plan:
        """What is measured; raises ValueError for options that do not fit together."""
        gpu, hurry = self.device == "cuda", self.budget is not None
        known = tuple(i for i in IMPLEMENTATIONS if i != "torchax" or not (gpu and hurry))
        columns = known if self.implementations is None else self.implementations
        return Plan(
            models=self.models,
            sizes=("gpu",) if gpu else ("small",) if self.quick else self.sizes,
            precisions=self.precisions or (("float32", "bfloat16") if gpu else ("float32",)),
            implementations=tuple(i for i in columns if not self.quick or i in ("eager", "jax")),
            rounds=(5 if self.quick or hurry else 9) if self.rounds is None else self.rounds,
            alone=not (self.quick or hurry),
            curves=self.curves and not (self.quick or hurry or gpu),
            budget=self.budget,
            device=self.device,
            threads=self.threads,
            attention=self.attention,
        )


def main(arguments: Sequence[str]) -> int:
    """Measures and reports what the flags ask for; returns the exit status.

    Raises:
      ValueError, OSError: options that make no sense, or a file that cannot be read or written.
    """
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks")
    if options.tables:
        pages.write()
        return 0
    plan, output = options.plan(), options.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder; got {output}")
    # Read before the measurement, so that a damaged file does not cost an hour.
    earlier = None if options.compare is None else rows.read(options.compare)
    machine.require(plan.device)
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    command = " ".join(["python -m benchmarks", *arguments])
    status, results = measured(plan, command, output, console)
    if results["cells"]:
        if options.keep:
            rows.keep(results, pages.RESULTS / f"{_results_name(plan, results)}.json")
        report.write_report(results, output)
        _print(console, report.printed(results))
        if earlier is not None:
            _print(console, changes_since(earlier, results))
        _print(console, f"{output}: results.json, results.md, report.html and plots")
    elif results.get("unfinished"):
        _print(console, report.summary(results))
    return status


def measured(plan: Plan, command: str, output: Path, console: Console) -> tuple[int, rows.Results]:
    """Measures; results.json in the output folder always holds the cells that are finished.

    Returns:
      The exit status, and the results up to the first error.
    """
    # The accelerator and its memory belong to the processes that measure.
    clock = None if plan.budget is None else budget.Clock(plan.budget)
    make_weights_here()
    results: rows.Results = {
        "environment": machine.environment(plan.device, command) | {"threads": plan.threads},
        "workloads": {f"{m} {s}": PAIRS[m].described(s) for m in plan.models for s in plan.sizes},
        "gemm_flop_per_s": {},
        "absent": {"torchax": torchax_absence()} if "torchax" in plan.implementations else {},
        "floors": roofline.floors(roofline.read()) if plan.device == "cuda" else {},
        "cells": [],
        "curves": [],
    }
    if warning := machine.busy_warning(results["environment"]["busy_cores"]):
        _print(console, f"benchmarks: {warning}", style="yellow")
    with tempfile.TemporaryDirectory() as folder, _progress(console) as report_progress:
        report_progress("matrix products", 0, None)
        if clock is None:
            trouble = _measure_all(plan, results, Path(folder), output, report_progress)
        else:
            trouble = _measure_within(plan, clock, results, Path(folder), output, report_progress)
    for line in trouble:
        _print(console, f"benchmarks: {line}", style="red")
    return int(bool(trouble)), results


def _measure_all(
    plan: Plan, results: rows.Results, folder: Path, output: Path, report_progress: ReportProgress
) -> list[str]:
    """Adds all cells to the results; returns the error that ended the run, if one did."""
    try:
        results["gemm_flop_per_s"] = machine.measured_peaks(plan.device, folder, plan.threads)
        for job, cells in measure(plan, folder, report_progress):
            results["cells" if job.point is None else "curves"] += cells
            rows.write(results, output)
    except (Disagreement, Failure) as error:
        return [str(error)]
    return []


def _measure_within(
    plan: Plan,
    clock: budget.Clock,
    results: rows.Results,
    folder: Path,
    output: Path,
    report_progress: ReportProgress,
) -> list[str]:
    """Adds the cells for which there is time to the results; returns what went wrong in other rows."""
    planned = budget.rows_by_value(plan)
    results["unfinished"] = {job_name(job): budget.NOT_REACHED for job in planned}
    results["gemm_flop_per_s"] = budget.prepare(planned, folder, clock)
    rows.write(results, output)
    wrong = []
    for job, cells, trouble in budget.measure_within(planned, folder, clock, report_progress):
        results["cells"] = budget.in_order(results["cells"] + cells, plan)
        if trouble is None:
            del results["unfinished"][job_name(job)]
        else:
            results["unfinished"][job_name(job)] = trouble
            wrong.append(trouble)
        rows.write(results, output)
    return wrong


def _results_name(plan: Plan, results: rows.Results) -> str:
    """A run of torchax without torch.compile has a file of its own: it must not replace the ratios to torch.compile."""
    name = "cpu" if plan.device == "cpu" else machine.short_name(results["environment"]["device"])
    alone = "torchax" in plan.implementations and "compile" not in plan.implementations
    return f"{name}-torchax" if alone else name


@contextlib.contextmanager
def _progress(console: Console) -> Generator[ReportProgress]:
    """A progress bar on a terminal, plain lines elsewhere; gives the function that reports progress."""
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def report_progress(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if not console.is_terminal and total is not None:
                _print(console, f"[{done + 1}/{total}] {what}")

        yield report_progress


def _print(console: Console, text: str, style: str | None = None) -> None:
    """Prints text as it is, in lines as long as they come."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("benchmarks: interrupted; results.json holds the cells that were finished", file=sys.stderr)
        sys.exit(130)
