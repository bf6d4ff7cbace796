"""Plots of results.json: the ratios of all rows, and one plot per scaling curve."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from jaxmodels import pages
from jaxmodels.atomic import atomic_write
from jaxmodels.benchmark.rows import Row, point_label


matplotlib.use("Agg", force=False)

STYLES = {  # colour, marker, name
    "eager": (pages.TORCH, "o", "eager PyTorch"),
    "compile": (pages.EXTRA, "D", "torch.compile"),
    "torchax": (pages.NOISE, "^", "torchax"),
    "jax": (pages.JAX, "s", "JAX"),
}


def figures(rows: Sequence[Row], curves: Mapping[str, Sequence[Row]]) -> dict[str, Figure]:
    """The ratios of all rows, if there are any, and each curve as "curve-MODEL"."""
    with matplotlib.rc_context(pages.plot_settings()):
        drawn = {}
        if any(row.ratio(name) for row in rows for name in STYLES if name != "jax"):
            drawn["ratios"] = ratios(rows)
        return drawn | {f"curve-{model}": curve(model, points) for model, points in curves.items()}


def write(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Writes NAME.svg for each figure; returns the paths."""
    paths = [folder / f"{name}.svg" for name in figures]
    for path, (name, figure) in zip(paths, figures.items(), strict=True):
        with atomic_write(path) as unfinished:
            unfinished.write_text(pages.svg_file(figure, name=name), encoding="utf-8")
    return paths


def ratios(rows: Sequence[Row]) -> Figure:
    """Time of JAX divided by that of each other implementation, one line per row."""
    figure = Figure(figsize=(9, 1.3 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    others = [name for name in STYLES if name != "jax" and any(row.ratio(name) for row in rows)]
    for number, name in enumerate(others):
        color, marker, label = STYLES[name]
        found = [(y, ratio) for y, row in enumerate(rows) if (ratio := row.ratio(name)) is not None]
        axes.errorbar(
            [ratio.value for _, ratio in found],
            [y + 0.22 * (number - (len(others) - 1) / 2) for y, _ in found],
            xerr=[ratio.value * ratio.noise for _, ratio in found],
            fmt=marker,
            ms=5,
            lw=1.2,
            capsize=2,
            color=color,
            label=f"JAX / {label}",
        )
    several = len({row.key[3] for row in rows}) > 1
    axes.set_yticks(range(len(rows)), [" ".join(row.key[: 4 if several else 3]) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = min(low, 0.8), max(high, 1.25)
    ticks = [t for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 6, 10) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low, high)
    axes.axvspan(low, 1, color=pages.JAX, alpha=0.06, lw=0)
    axes.axvline(1, color=pages.MUTED, lw=1)
    axes.set_xlabel("time of JAX / time of PyTorch  (shaded: JAX is faster; bars: noise)")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(others))
    _style(axes)
    return figure


def curve(model: str, points: Sequence[Row]) -> Figure:
    """Time and peak memory of JAX and eager PyTorch against what the curve varies."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    first = next(iter(points[0].cells.values()))
    points_at = [next(iter(row.cells.values()))["at"] for row in points]
    numeric = all(isinstance(at, int | float) for at in points_at)
    x = points_at if numeric else list(range(len(points_at)))
    for name, (color, marker, label) in STYLES.items():
        for axes, key in ((time, "median_ms"), (memory, "peak_mb")):
            values = [row.cells.get(name, {}).get(key) for row in points]
            known = [(at, value) for at, value in zip(x, values, strict=True) if value is not None]
            if known:
                axes.plot(*zip(*known, strict=True), marker=marker, ms=4, lw=1.4, color=color, label=label)
        timed = [(at, row.cells[name]) for at, row in zip(x, points, strict=True) if row.median(name)]
        if timed:
            low, high = ([cell[key] for _, cell in timed] for key in ("q1_ms", "q3_ms"))
            time.fill_between([at for at, _ in timed], low, high, color=color, alpha=0.2, lw=0)
    time.set_yscale("log")
    memory.set_ylim(bottom=0)
    for axes, label in ((time, "forward pass, ms"), (memory, "peak memory of the process, MB")):
        if numeric:
            axes.set_xscale("log", base=2)
        axes.set_xticks(x, [point_label(at) for at in points_at])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=first["curve"], ylabel=label)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
        _style(axes)
    for formatter in (time.yaxis.set_major_formatter, time.yaxis.set_minor_formatter):
        formatter(FuncFormatter(_tick_label))
    time.tick_params(axis="y", which="both", labelsize=8)
    figure.suptitle(model, fontsize=11)
    return figure


def _tick_label(value: float, _: int) -> str:
    """Labels for 1, 2 and 5 times powers of ten; no label at other ticks."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
