"""The result as a table in the terminal, as report.json and as one self-contained report.html."""

import datetime
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from rich import box
from rich.console import Console
from rich.table import Table

from jaxmodels import pages
from jaxmodels.atomic import atomic_write
from jaxmodels.compare.explanation import explain, next_step, number
from jaxmodels.compare.figures import closest_to_tolerance, depth_plot, gradient_plot, loss_plot
from jaxmodels.compare.layer_tree import layer_tree
from jaxmodels.compare.noise import FACTOR, LARGEST_TOLERANCE, Check
from jaxmodels.compare.outcome import Failure, Outcome
from jaxmodels.compare.places import Place
from jaxmodels.compare.result import Result
from jaxmodels.json_values import as_json


SCHEMA = 1  # the version of report.schema.json; a field that goes or changes its meaning raises it
COLUMNS = ("verdict", "model", "outputs", "gradients", "training", "differs at")
STYLES = {"equal": "good", "different": "bad", "cannot be judged": "unsure"}  # classes of report.css
LARGEST_SHARE = 9.99  # of a tolerance that is written as a percentage
ROWS = 12


class Cell(NamedTuple):
    """One cell of the overview: a number or a word, and what share of the tolerance the number is."""

    text: str
    share: str = ""


def overview(result: Result) -> list[Cell]:
    """The cells of one model, under `COLUMNS`: of each kind the error that comes closest to its tolerance."""
    return [
        Cell(result.verdict),
        Cell(result.model),
        _closest(result.outputs),
        _closest(result.gradients),
        _closest([*result.weights, *result.loss_checks]),
        Cell(result.divergence.layer if result.divergence else "–"),
    ]


def _closest(checks: Sequence[Check]) -> Cell:
    check = closest_to_tolerance(checks)
    return Cell("–") if check is None else _cell(check)


def _cell(check: Check) -> Cell:
    if not math.isfinite(check.error):
        return Cell("∞")
    if check.tolerance == 0:
        return Cell(number(check.error))
    share = check.error / check.tolerance
    more = "> " if share > LARGEST_SHARE else ""
    return Cell(number(check.error), f"{more}{100 * min(share, LARGEST_SHARE):.0f} %")


def worst(checks: Sequence[Check]) -> float:
    """The largest error; not a number counts as infinite."""
    return max((check.error if not math.isnan(check.error) else math.inf for check in checks), default=0.0)


def tolerance(result: Result) -> float:
    """The widest tolerance among outputs, gradients and weights."""
    checks = [*result.outputs, *result.gradients, *result.weights]
    return max((check.tolerance for check in checks), default=0.0)


def print_table(results: Sequence[Result], console: Console) -> None:
    """One row per model; below it what is known of a difference, or why there is no verdict."""
    if not results:
        return
    table = Table(
        title=f"JAX against PyTorch in {results[0].dtype}: shared weights, equal inputs",
        title_justify="left",
        box=box.SIMPLE_HEAD,  # six columns in 80 characters
    )
    for name in COLUMNS:
        is_number = name in COLUMNS[2:5]
        table.add_column(
            name,
            justify="right" if is_number else "left",
            no_wrap=is_number or name == "model",
            max_width=len("different") if name == "verdict" else None,
            overflow="fold",
        )
    for result in results:
        cells = [f"{cell.text} {cell.share.replace(' ', '')}".strip() for cell in overview(result)]
        table.add_row(*cells, style={"equal": None, "different": "bold red"}.get(result.verdict, "yellow"))
    console.print(table)
    console.print(_explanation(results[0]), style="dim", soft_wrap=True)
    for result in results:
        begin = {"difference": result.model, "cannot be judged": f"{result.model} cannot be judged"}
        for label, text in explain(result).items():
            if label != "layer":  # it is in the table
                console.print(f"{begin.get(label, f'  {label}')}: {text}", soft_wrap=True, markup=False)
        for note in result.notes:
            console.print(f"{result.model}: {note}", style="dim", soft_wrap=True)


def _explanation(result: Result) -> str:
    training = f"\nTraining: {_training_text(result)}." if result.losses else ""
    return (
        "Errors are relative to the largest value of their tensor; behind them their share of the tolerance, which is\n"
        f"{FACTOR} × the distance between PyTorch in float32 and PyTorch in float64, measured here.{training}"
    )


def _training_text(result: Result) -> str:
    """What was compared of the training run."""
    steps = len(result.losses)
    losses = f"the loss before each of {steps} optimiser steps" if steps > 1 else "the loss"
    return losses + (f", and the weights after {result.weight_steps}" if result.weights else "")


def to_json(
    results: Sequence[Result], *, command: str = "", failures: Sequence[Failure] = ()
) -> dict[str, Any]:
    """The machine-readable report, as report.schema.json describes it. Numbers that are not finite become null."""
    outcome = Outcome(list(results), list(failures))
    return as_json(
        {
            "schema": SCHEMA,
            "verdict": outcome.verdict,
            "exit_status": outcome.status,
            "environment": environment(command),
            "factor": FACTOR,
            "largest_tolerance": LARGEST_TOLERANCE,
            "models": [_model_json(result) for result in results],
            "failures": [{**vars(failure), "code": _code(failure.code)} for failure in failures],
        }
    )


def _model_json(result: Result) -> dict[str, Any]:
    return {
        "model": result.model,
        "ok": result.ok,
        "verdict": result.verdict,
        "reason": result.reason,
        "dtype": result.dtype,
        "output_error": worst(result.outputs),
        "gradient_error": worst(result.gradients),
        "step_error": worst(result.weights) if result.weights else None,
        "loss_error": worst(result.loss_checks) if result.loss_checks else None,
        "tolerance": tolerance(result),
        "first_divergence": result.divergence.layer if result.divergence else None,
        "divergence": asdict(result.divergence) if result.divergence else None,
        "diagnosis": result.diagnosis,
        "next_step": next_step(result),
        "code": _code(result.code),
        "parameters": result.parameters,
        "outputs": [_check(check) for check in result.outputs],
        "layers": [_check(check) for check in result.layers],
        "layers_not_compared": result.not_compared,
        "statistics": [_check(check) for check in result.statistics],
        "gradients": [_check(check) for check in result.gradients],
        "weights": [_check(check) for check in result.weights],
        "optimizers": asdict(result.optimizers) if result.optimizers else None,
        "losses": asdict(result.losses),
        "loss_checks": [_check(check) for check in result.loss_checks],
        "routing": asdict(result.routing) if result.routing else None,
        "matmul_precision": result.precision._asdict(),
        "notes": result.notes,
    }


def environment(command: str = "") -> dict[str, str]:
    """What the numbers were measured with."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": command,
        "python": platform.python_version(),
        "device": _device(),
        **{name: _version(name) for name in ("jax", "flax", "optax", "torch", "numpy")},
    }


def _device() -> str:
    """That of JAX, which judging captures does not start."""
    if "jax" not in sys.modules:
        return "none"
    import jax

    return f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def write(
    results: Sequence[Result], folder: Path, *, command: str = "", failures: Sequence[Failure] = ()
) -> None:
    """Writes report.json and report.html into `folder`, each complete or not at all."""
    report = to_json(results, command=command, failures=failures)
    with atomic_write(folder / "report.json") as path:
        path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    with atomic_write(folder / "report.html") as path:
        path.write_text(html(results, report), encoding="utf-8")


def html(results: Sequence[Result], report: dict[str, Any]) -> str:
    """One page that loads nothing: its style and its plots are in it."""
    template = resources.files("jaxmodels.compare").joinpath("report.html.j2").read_text(encoding="utf-8")
    sections = [
        {
            "result": result,
            "style": STYLES[result.verdict],
            "cells": overview(result),
            "next_step": next_step(result),
            "depth": depth_plot(result),
            "layers": layer_tree(result.layers),
            "gradients": gradient_plot(result),
            "losses": loss_plot(result),
            "training": _training_text(result),
            "closest": result.gradients[:ROWS],
            "differing": [check for check in result.layers if not check.ok][:ROWS],
        }
        for result in results
    ]
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return page.render(
        columns=COLUMNS,
        example=_example(results),
        sections=sections,
        verdict=report["verdict"],
        style=STYLES[report["verdict"]],
        failures=report["failures"],
        stylesheet=pages.stylesheet(),
        environment=report["environment"],
        factor=FACTOR,
        largest_tolerance=LARGEST_TOLERANCE,
        number=number,
        cell=_cell,
    )


def _example(results: Sequence[Result]) -> Cell | None:
    """A cell with a number and its share of the tolerance, by which the page explains such cells."""
    cells = [cell for result in results for cell in overview(result) if cell.share]
    return min(cells, key=lambda cell: cell.share.startswith(">"), default=None)


def _code(code: Place | None) -> dict[str, Any] | None:
    return code._asdict() if code else None


def _check(check: Check) -> dict[str, Any]:
    return {**vars(check), "ok": check.ok}
