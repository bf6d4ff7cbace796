"""`jaxmodels benchmark`: times the two sides of a pair, if they agree."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxmodels.benchmark import machine, report, rows
from jaxmodels.benchmark.cells import cell_of
from jaxmodels.benchmark.kinds import Device, Implementation, Mode
from jaxmodels.benchmark.machine import Failure
from jaxmodels.benchmark.processes import (
    Disagreement,
    answer_of,
    environment_of,
    last_error,
    require_agreement,
)
from jaxmodels.benchmark.sides import has_sides, pairs_of
from jaxmodels.benchmark.worker import Job
from jaxmodels.compare.engine import compare
from jaxmodels.compare.explanation import explain
from jaxmodels.compare.outcome import STATUSES
from jaxmodels.compare.pair import Pair
from jaxmodels.compare.precision import ReducedPrecisionError
from jaxmodels.compare.preparation import cast
from jaxmodels.convert.files import write_safetensors
from jaxmodels.convert.torch_io import to_numpy


def run(
    targets: Sequence[str],
    *,
    modes: Sequence[Mode],
    implementations: Sequence[Implementation],
    device: Device,
    rounds: int,
    threads: int,
    quick: bool,
    output: Path,
) -> int:
    """Compares every pair, times those that agree, and writes results.json, tables and plots.

    Args:
      targets: files with a `pair()`, or names of models.
      modes: forward pass, training step, or both.
      implementations: the columns.
      device, threads: where all of them run, and how many cores each may use.
      rounds: how often each is timed.
      quick: leave out first calls and memory.
      output: the folder for the results.

    Returns:
      The exit status: 0; 1 where a pair differs; 2 where one cannot be judged, or a process fails.

    Raises:
      ValueError, OSError: a pair that cannot be read or compared, or a folder that cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder; got {output}")
    machine.require(device)
    console = Console()
    command = " ".join(["jaxmodels", *sys.argv[1:]])
    results: rows.Results = {
        "environment": machine.environment(device, command) | {"threads": threads},
        "cells": [],
    }
    if warning := machine.busy_warning(results["environment"]["busy_cores"]):
        _print(console, f"jaxmodels: {warning}")
    statuses = []
    with tempfile.TemporaryDirectory() as folder:
        measured = _Measured(results, output, Path(folder), console, alone=not quick)
        for target, number, pair in _pairs(targets):
            job = Job(
                target=target,
                number=number,
                mode=modes[0],
                implementations=tuple(implementations),
                rounds=rounds,
                threads=threads,
                device=device,
            )
            statuses.append(_disagreement(pair, console) or measured.add(job, pair, modes))
    if results["cells"]:
        report.write_report(results, output)
        _print(console, report.printed(results))
        _print(console, f"{output}: results.json, results.md, report.html and plots")
    return next((status for status in STATUSES.values() if status in statuses), 0)


def _pairs(targets: Sequence[str]) -> Iterator[tuple[str, int | None, Pair]]:
    """Every pair under a name of its own, with its target and, where a process needs it, its number there."""
    names = set()
    for target in targets:
        pairs = pairs_of(target)
        for number, pair in enumerate(pairs):
            if pair.name in names:  # by which tables tell rows apart
                pair = replace(pair, name=f"{pair.name} ({target})")
            names.add(pair.name)
            yield target, None if len(pairs) == 1 and has_sides(target) else number, pair


@dataclass(frozen=True)
class _Measured:
    """The results so far, and what is needed to add to them."""

    results: rows.Results
    output: Path
    folder: Path
    console: Console
    alone: bool

    def add(self, job: Job, pair: Pair, modes: Sequence[Mode]) -> int:
        """Measures one pair in all modes and saves each row when it is there; returns an exit status."""
        if job.number is None:
            job = replace(job, files=tempfile.mkdtemp(dir=self.folder))
            _write_files(pair, Path(str(job.files)))
        try:
            for mode in modes:
                job = replace(job, mode=mode)
                self.results["cells"] += _row(job, pair, self.folder, self.console, alone=self.alone)
                self.output.mkdir(parents=True, exist_ok=True)
                rows.write(self.results, self.output)
        except (Disagreement, Failure) as error:
            _print(self.console, f"jaxmodels: {error}")
            return STATUSES["different" if isinstance(error, Disagreement) else "cannot be judged"]
        return 0


def _write_files(pair: Pair, folder: Path) -> None:
    """Writes the weights and inputs of a pair, for functions that make one side alone."""
    weights = {name: to_numpy(tensor) for name, tensor in pair.theirs.state_dict().items()}
    write_safetensors(folder / "weights.safetensors", weights)
    write_safetensors(folder / "inputs.safetensors", cast(pair.inputs, "float32"))


def _disagreement(pair: Pair, console: Console) -> int:
    """The exit status of a pair that is not equal, after it said why; 0 for one that is.

    Raises:
      ValueError: the pair cannot be compared.
    """
    _print(console, f"{pair.name}: comparing")
    try:
        result = compare(pair, steps=0)
    except ReducedPrecisionError as error:
        raise ValueError(str(error)) from error
    if not result.ok:
        _print(console, f"{pair.name}: {result.verdict}; nothing was timed")
        for label, text in explain(result).items():
            _print(console, f"  {label}: {text}")
    return STATUSES[result.verdict]


def _row(job: Job, pair: Pair, folder: Path, console: Console, *, alone: bool) -> list[rows.Cell]:
    """The cells of one pair and mode: each implementation alone, then all in turn.

    Raises:
      Disagreement: they do not compute the same.
      Failure: a process ended with an error. Where only torch.compile fails, its cell says so.
    """
    shape = "×".join(map(str, getattr(next(iter(pair.inputs.values()), None), "shape", ()))) or "1"
    row = {"model": pair.name, "mode": job.mode, "size": shape, "precision": "float32"}
    who = f"{pair.name} {job.mode}"
    found: dict[Implementation, dict[str, Any]] = {name: {} for name in job.implementations}
    for name in job.implementations if alone else ():
        _print(console, f"{who}: first call and memory of {name}")
        try:
            found[name] = _run(replace(job, implementations=(name,)), who, folder)
        except Failure as error:
            if name != "compile":
                raise
            found[name] = {"failure": last_error(str(error))}
    job = replace(job, implementations=tuple(name for name in found if "failure" not in found[name]))
    in_turn = None
    if len(job.implementations) > 1:
        _print(console, f"{who}: timing")
        in_turn = _run(replace(job, time_again=True), who, folder)
        require_agreement(
            who, in_turn["errors"], "float32", advice=f"`jaxmodels compare {job.target}` finds where"
        )
    return [cell_of(row, name, found, in_turn, last=job.implementations[-1]) for name in found]


def _run(job: Job, who: str, folder: Path) -> dict[str, Any]:
    """The answer of a process of its own, which starts in the same folder and finds the pair's file there."""
    stem = f"{Path(job.target).stem}-{job.number}-{job.mode}-{'-'.join(job.implementations)}"
    request, answer = folder / f"{stem}.job.json", folder / f"{stem}.json"
    job.write(request)
    return answer_of(
        [sys.executable, "-m", "jaxmodels.benchmark.worker", str(request), str(answer)],
        answer,
        who=f"{who} with {', '.join(job.implementations)}",
        environment=environment_of(folder, job.device, job.threads),
    )


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
