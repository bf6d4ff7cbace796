"""`python -m benchmarks`: what running these models in JAX gains, and what it costs."""

import sys
import tempfile
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine, report
from benchmarks.problem import MODELS, Device, Implementation, ModelName, Precision, Size
from benchmarks.run import Disagreement, Failure, Plan, measure, torchax_absence


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
    rounds: int | None = None,
    threads: int = machine.cores(),
    curves: bool = True,
) -> int:
    """Time JAX against PyTorch on equal weights and inputs, after checking that both compute the same.

    Writes results.json, a table (results.md) and plots. Every number of a row comes from one process in which
    the sides take turns; first calls and memory from processes that hold one side alone.

    Args:
        quick: small sizes, eager and JAX only, no curves: two minutes.
        output: folder for the results.
        compare: an earlier results.json; says what moved by more than the noise.
        models: which of the five.
        sizes: on a CPU; a GPU has sizes of its own.
        implementations: the columns.
        device: of both sides.
        precisions: of the computation; on a CPU float32, on a GPU also bfloat16.
        rounds: turns of every side in a row.
        threads: cores that both sides may use.
        curves: also measure how time and memory grow with the size of the input.
    """
    if device == "cuda":
        chosen_sizes: tuple[Size, ...] = ("gpu",)
    else:
        chosen_sizes = ("small",) if quick else sizes
    if precisions is None:
        precisions = ("float32", "bfloat16") if device == "cuda" else ("float32",)
    earlier = None if compare is None else report.read(compare)  # before an hour is spent
    plan = Plan(
        models=models,
        sizes=chosen_sizes,
        precisions=precisions,
        implementations=tuple(i for i in implementations if not quick or i in ("eager", "jax")),
        rounds=rounds or (7 if quick else 15),
        alone=not quick,
        curves=curves and not quick and device == "cpu",
        device=device,
        threads=threads,
    )
    results = {
        "environment": machine.environment(device, sys.argv[1:]) | {"threads": threads},
        "gemm_flop_per_s": {},
        "absent": {"torchax": torchax_absence()} if "torchax" in plan.implementations else {},
        "cells": [],
        "curves": [],
    }
    console = Console()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, _bar(console) as bar:
        task = bar.add_task("matrix products", total=None)
        results["gemm_flop_per_s"] = machine.measured_peaks(device, Path(folder), threads)

        def said(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"[{done + 1}/{total}] {what}", highlight=False, soft_wrap=True)

        try:
            for job, found in measure(plan, Path(folder), said):
                results["cells" if job.point is None else "curves"] += found
                report.write(results, output)  # an interrupted run keeps what it has
        except (Disagreement, Failure) as error:
            console.print(f"benchmarks: {error}", style="red", highlight=False, markup=False)
            return 1
    console.print(report.table(results), markup=False, highlight=False, soft_wrap=True)
    if earlier is not None:
        console.print(report.moves(earlier, results), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{output / 'results.json'}, results.md and plots written", highlight=False)
    return 0


def _bar(console: Console) -> Progress:
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main, prog="python -m benchmarks"))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("benchmarks: interrupted; results.json holds the cells that were finished", file=sys.stderr)
        sys.exit(130)
