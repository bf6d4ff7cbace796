"""The result as a table in the terminal, as report.json and as one self-contained report.html."""

import base64
import datetime
import io
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxmodels.atomic import atomic_write
from jaxmodels.compare.noise import FACTOR, Check
from jaxmodels.compare.result import Result


matplotlib.use("Agg", force=False)

BLUE = "#1f4e8c"
COLUMNS = ("model", "outputs", "gradients", "training", "diverges at", "equal")


def row(result: Result) -> list[str]:
    """The cells of one model, under `COLUMNS`: the worst error and its share of the tolerance."""
    return [
        result.model,
        _worst_cell(result.outputs),
        _worst_cell(result.gradients),
        _worst_cell([*result.weights, *result.loss_checks]),
        result.divergence.layer if result.divergence else "–",
        "yes" if result.ok else "NO",
    ]


def _worst_cell(checks: Sequence[Check]) -> str:
    """The error that comes closest to its tolerance, and how close."""
    if not checks:
        return "–"
    check = max(
        checks, key=lambda check: math.inf if math.isnan(check.error) else check.error / check.tolerance
    )
    share = check.error / check.tolerance
    return f"{_number(check.error)} {min(share, 9.99):.0%}" if math.isfinite(share) else "∞"


def worst(checks: Sequence[Check]) -> float:
    """The largest error; not a number counts as infinite."""
    return max((check.error if not math.isnan(check.error) else math.inf for check in checks), default=0.0)


def tolerance(result: Result) -> float:
    """The widest tolerance among outputs, gradients and weights."""
    return max(check.tolerance for check in [*result.outputs, *result.gradients, *result.weights])


def print_table(results: Sequence[Result], console: Console) -> None:
    """One row per model; where two sides differ, the place and the sentence that says what is known of it."""
    if not results:
        return
    first = results[0]
    table = Table(
        title=f"JAX against PyTorch in {first.dtype}: shared weights, real inputs", title_justify="left"
    )
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in COLUMNS[1:4] else "left", overflow="fold")
    for result in results:
        table.add_row(*row(result), style=None if result.ok else "bold red")
    console.print(table)
    console.print(
        "Largest error relative to the largest value of its tensor, and its share of the tolerance. The tolerance is\n"
        f"{FACTOR} × the distance between PyTorch in float32 and PyTorch in float64, measured here."
        + (f"\nTraining: {_training_text(first)}." if first.losses else ""),
        style="dim",
        soft_wrap=True,
    )
    for result in results:
        if result.divergence:
            console.print(
                f"{result.model}: {result.divergence.detail} (error {_number(result.divergence.error)})"
            )
        for note in result.notes:
            console.print(f"{result.model}: {note}", style="dim")


def _training_text(result: Result) -> str:
    """What was compared of the training run."""
    steps = len(result.losses)
    losses = f"the loss before each of {steps} AdamW steps" if steps > 1 else "the loss"
    return losses + (f", and the weights after {result.weight_steps}" if result.weights else "")


def to_json(results: Sequence[Result], *, command: str = "") -> dict[str, Any]:
    """The machine-readable report; see the README for its fields. Numbers that are not finite become null."""
    models = []
    for result in results:
        models.append(
            {
                "model": result.model,
                "ok": result.ok,
                "dtype": result.dtype,
                "output_error": worst(result.outputs),
                "gradient_error": worst(result.gradients),
                "step_error": worst(result.weights) if result.weights else None,
                "loss_error": worst(result.loss_checks) if result.loss_checks else None,
                "tolerance": tolerance(result),
                "first_divergence": result.divergence.layer if result.divergence else None,
                "divergence": asdict(result.divergence) if result.divergence else None,
                "parameters": result.parameters,
                "outputs": [_check(check) for check in result.outputs],
                "layers": [_check(check) for check in result.layers],
                "gradients": [_check(check) for check in result.gradients],
                "weights": [_check(check) for check in result.weights],
                "losses": asdict(result.losses),
                "loss_checks": [_check(check) for check in result.loss_checks],
                "routing": asdict(result.routing) if result.routing else None,
                "matmul_precision": result.precision._asdict(),
                "notes": result.notes,
            }
        )
    return _finite({"environment": environment(command), "factor": FACTOR, "models": models})


def environment(command: str = "") -> dict[str, str]:
    """What the numbers were measured with."""
    versions = {name: metadata.version(name) for name in ("jax", "flax", "optax", "torch", "numpy")}
    import jax

    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": command,
        "python": platform.python_version(),
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        **versions,
    }


def write(results: Sequence[Result], folder: Path, *, command: str = "") -> None:
    """Writes report.json and report.html into `folder`, each whole or not at all."""
    report = to_json(results, command=command)
    with atomic_write(folder / "report.json") as path:
        path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    with atomic_write(folder / "report.html") as path:
        path.write_text(html(results, report))


def html(results: Sequence[Result], report: dict[str, Any]) -> str:
    """One page without outside references: pictures are embedded."""
    template = resources.files("jaxmodels.compare").joinpath("report.html.j2").read_text()
    sections = [
        {
            "result": result,
            "cells": row(result),
            "depth": _picture(_depth_figure(result)),
            "gradients": _picture(_gradient_figure(result)),
            "losses": _picture(_loss_figure(result)) if len(result.losses) > 1 else None,
            "training": _training_text(result),
            "rows": result.gradients[:12],
            "layers": [c for c in result.layers if not c.ok][:12],
        }
        for result in results
    ]
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return page.render(
        columns=COLUMNS,
        sections=sections,
        ok=all(result.ok for result in results),
        environment=report["environment"],
        factor=FACTOR,
        number=_number,
    )


def _depth_figure(result: Result):
    """Difference against depth: every layer's output in the order in which PyTorch runs them."""
    from matplotlib.figure import Figure

    outputs = [check for check in result.layers if check.kind == "output"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    depth = range(len(outputs))
    floor = min((c.noise for c in outputs), default=1e-16) / 30
    axes.fill_between(depth, floor, [c.tolerance for c in outputs], color="#e8f0e4", label="tolerance")
    axes.plot(depth, [c.noise for c in outputs], color="#7a9", lw=1, label="PyTorch's own noise")
    good = [(i, max(c.error, floor)) for i, c in enumerate(outputs) if c.ok]
    bad = [(i, min(c.error, 10.0)) for i, c in enumerate(outputs) if not c.ok]
    for points, style, colour, label in (
        (good, ".", BLUE, "JAX – PyTorch"),
        (bad, "x", "#c0392b", "out of tolerance"),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), style, ms=6, color=colour, label=label)
    axes.set(yscale="log", xlabel="layer call, in order of execution", ylabel="relative difference")
    step = max(1, len(outputs) // 12)
    names = [_short(check.name) for check in outputs]
    axes.set_xticks(list(depth)[::step], names[::step], rotation=30, ha="right", fontsize=7)
    axes.set_xlim(-1, len(outputs))
    figure.legend(fontsize=8, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _short(name: str) -> str:
    """The last parts of a path, so that twelve fit under a picture."""
    parts = name.split(".")
    return "…" + ".".join(parts[-3:]) if len(parts) > 4 else name or "(model)"


def _gradient_figure(result: Result):
    """The parameters whose gradients differ most, worst first."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    worst_first = result.gradients[:16][::-1]
    figure = Figure(figsize=(9, 0.24 * len(worst_first) + 1.1), layout="constrained")
    axes = figure.subplots()
    names = [check.name for check in worst_first]
    least = min((c.noise for c in worst_first), default=1e-16) / 30
    most = max((max(c.tolerance, min(c.error, 10.0)) for c in worst_first), default=1.0) * 3
    colours = [BLUE if c.ok else "#c0392b" for c in worst_first]
    axes.barh(names, [min(max(c.error, least), 10.0) for c in worst_first], color=colours, height=0.55)
    axes.plot([c.tolerance for c in worst_first], names, "|", color="#4a7", ms=9, mew=2, label="tolerance")
    axes.set(xscale="log", xlabel="relative difference of the gradient", xlim=(least, most))
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", labelsize=7)
    figure.legend(fontsize=8, frameon=False, loc="outside upper right")
    return figure


def _loss_figure(result: Result):
    """The losses of both training runs, and below how far apart runs are that should be equal."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    steps = range(1, len(result.losses) + 1)
    marker = "." if len(steps) <= 20 else ""
    above.plot(steps, result.losses.pytorch, marker=marker, lw=4, color="#f0b27a", label="PyTorch")
    above.plot(steps, result.losses.jax, marker=marker, lw=1.2, color=BLUE, label="JAX")
    above.set(ylabel="loss")
    above.legend(fontsize=8, frameon=False)
    gaps = _gaps(result)
    bottom = min((x for gap, *_ in gaps.values() for x in gap if x > 0), default=1e-16) / 4
    for label, (gap, colour, dashes) in gaps.items():
        drawn = [max(x, bottom) for x in gap]
        below.plot(steps, drawn, ".", ms=5, color=colour)
        below.plot(steps, np.maximum.accumulate(drawn), dashes, color=colour, lw=1.5, label=label)
    below.set(yscale="log", xlabel="AdamW step", ylabel="difference of the losses")
    below.set_xlim(0.5, len(steps) + 0.5)
    below.annotate("  0", (1, bottom), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = below.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _gaps(result: Result) -> dict[str, tuple[np.ndarray, str, str]]:
    """Distances between losses, step by step; the colour and the dashes of each."""
    losses = {name: np.array(curve) for name, curve in asdict(result.losses).items()}
    here, elsewhere = result.losses.threads
    ours, theirs = losses["jax"], losses["pytorch"]
    threads = f"PyTorch with {here} – with {elsewhere} thread{'s' if elsewhere > 1 else ''}"
    gaps = {
        "PyTorch float32 – float64": (losses["pytorch_float32"] - losses["pytorch_float64"], "#7a9", "-"),
        threads: (theirs - losses["pytorch_other_threads"], "#e08a3c", "-"),
        "JAX – PyTorch": (ours - theirs, BLUE, "-"),
        "JAX – PyTorch at equal weights": (ours - losses[f"jax_weights_{result.dtype}"], "#a463b0", "--"),
    }
    return {label: (np.abs(gap), colour, dashes) for label, (gap, colour, dashes) in gaps.items()}


def _picture(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "∞"


def _check(check: Check) -> dict[str, Any]:
    return {**vars(check), "ok": check.ok}


def _finite(value: Any) -> Any:
    """JSON has no infinity; `null` is what readers can parse."""
    match value:
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
