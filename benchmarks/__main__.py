"""`python -m benchmarks`: what running these models in JAX gains, and what it costs."""

import contextlib
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine, pages, report
from benchmarks.changes import changes_since
from benchmarks.problem import MODELS, Device, Implementation, ModelName, Precision, Size
from benchmarks.run import Disagreement, Failure, Plan, measure, torchax_absence
from benchmarks.sizes import WORKLOADS


BUSY = 0.3  # cores from which on a warning is due


def main(
    *,
    quick: bool = False,
    output: Path = Path("out/benchmarks"),
    compare: Path | None = None,
    models: tuple[ModelName, ...] = MODELS,
    sizes: tuple[Literal["small", "medium"], ...] = ("small", "medium"),
    implementations: tuple[Implementation, ...] = ("eager", "compile", "torchax", "jax"),
    device: Device = "cpu",
    precisions: tuple[Precision, ...] | None = None,
    attention: Literal["xla", "cudnn"] = "xla",
    rounds: int | None = None,
    threads: int = machine.cores(),
    curves: bool = True,
    tables: bool = False,
) -> int:
    """Time JAX against PyTorch on equal weights and inputs, after checking that both compute the same.

    Writes results.json, tables (results.md, report.html) and plots. Every number of a row comes from one process
    in which the sides take turns; first calls and memory from processes that hold one side alone.

    Args:
        quick: small sizes, eager and JAX only, no curves: two minutes.
        output: folder for the results.
        compare: an earlier results.json; says what moved by more than the noise.
        models: which of the five.
        sizes: on a CPU; a GPU has sizes of its own.
        implementations: the columns.
        device: of both sides.
        precisions: of the computation; on a CPU float32, on a GPU also bfloat16.
        attention: of JAX in bfloat16; "cudnn" is the fused kernel of NVIDIA GPUs.
        rounds: turns of every side in a row.
        threads: cores that both sides may use.
        curves: also measure how time and memory grow with the size of the input.
        tables: measure nothing; write benchmarks/README.md and docs/benchmarks.md from benchmarks/results.
    """
    if tables:
        pages.write()
        return 0
    if device == "cuda":
        chosen_sizes: tuple[Size, ...] = ("gpu",)
    else:
        chosen_sizes = ("small",) if quick else sizes
    if precisions is None:
        precisions = ("float32", "bfloat16") if device == "cuda" else ("float32",)
    plan = Plan(
        models=models,
        sizes=chosen_sizes,
        precisions=precisions,
        implementations=tuple(i for i in implementations if not quick or i in ("eager", "jax")),
        rounds=(5 if quick else 9) if rounds is None else rounds,
        alone=not quick,
        curves=curves and not quick and device == "cpu",
        device=device,
        threads=threads,
        attention=attention,
    )
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder; got {output}")
    earlier = None if compare is None else report.read(compare)  # before an hour is spent
    machine.require(device)
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    status, results = _measured(plan, output, console)
    if results["cells"]:
        report.write_report(results, output)
        console.print(report.table(results), markup=False, highlight=False, soft_wrap=True)
        if earlier is not None:
            console.print(changes_since(earlier, results), markup=False, highlight=False, soft_wrap=True)
        written = "results.json, results.md, report.html and plots"
        console.print(f"{output}: {written}", highlight=False, markup=False, soft_wrap=True)
    return status


def _measured(plan: Plan, output: Path, console: Console) -> tuple[int, report.Results]:
    """Exit status, and what was measured until then; results.json holds it at any time."""
    # This process only makes weights: once, so that compiling well would take longer than it saves. The accelerator
    # and its memory belong to the processes that measure.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    results: report.Results = {
        "environment": machine.environment(plan.device, sys.argv[1:]) | {"threads": plan.threads},
        "workloads": {f"{m} {s}": repr(WORKLOADS[m][s]) for m in plan.models for s in plan.sizes},
        "gemm_flop_per_s": {},
        "absent": {"torchax": torchax_absence()} if "torchax" in plan.implementations else {},
        "floors": pages.floors() if plan.device == "cuda" else {},
        "cells": [],
        "curves": [],
    }
    busy = results["environment"]["busy_cores"]
    if busy and busy > BUSY:
        console.print(
            f"benchmarks: other processes keep {busy} of {machine.cores()} cores busy; that slows PyTorch down most, "
            "whose threads wait for each other, so the ratios will flatter JAX",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    try:
        with tempfile.TemporaryDirectory() as folder, _progress(console) as said:
            said("matrix products", 0, None)
            results["gemm_flop_per_s"] = machine.measured_peaks(plan.device, Path(folder), plan.threads)
            for job, found in measure(plan, Path(folder), said):
                results["cells" if job.point is None else "curves"] += found
                report.write(results, output)  # an interrupted run keeps what it has
    except (Disagreement, Failure) as error:
        console.print(f"benchmarks: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1, results
    return 0, results


@contextlib.contextmanager
def _progress(console: Console) -> Generator[Any]:
    """A bar on a terminal, lines elsewhere; gives the function that moves it."""
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def said(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if not console.is_terminal and total is not None:
                console.print(f"[{done + 1}/{total}] {what}", highlight=False, markup=False, soft_wrap=True)

        yield said


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main, prog="python -m benchmarks"))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("benchmarks: interrupted; results.json holds the cells that were finished", file=sys.stderr)
        sys.exit(130)
