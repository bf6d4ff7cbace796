"""The plots of a comparison's report, as SVG in the colours of the page."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from jaxmodels import pages
from jaxmodels.compare.noise import Check, closeness
from jaxmodels.compare.result import Result


LARGEST_DRAWN = 10.0  # an infinite error must end somewhere
BARS = 16
MOST_POINTS = 300  # along the depth of a model


def depth_plot(result: Result) -> str | None:
    """Difference against depth: every layer's output in the order in which PyTorch runs them.

    Of a deep model each point stands for several calls: it is the one that comes closest to its tolerance.
    """
    outputs = [check for check in result.layers if check.kind == "output"]
    if not outputs:
        return None
    calls = len(outputs)
    per_point = -(-calls // MOST_POINTS)
    outputs = [max(outputs[i : i + per_point], key=closeness) for i in range(0, calls, per_point)]
    with mpl.rc_context(pages.plot_settings()):
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        depth = range(len(outputs))
        floor = min(check.noise for check in outputs) / 30
        axes.fill_between(depth, floor, [c.tolerance for c in outputs], color=pages.BAND, label="tolerance")
        axes.plot(depth, [c.noise for c in outputs], color=pages.NOISE, lw=1, label="PyTorch's own noise")
        agreeing = [(i, max(c.error, floor)) for i, c in enumerate(outputs) if c.ok]
        differing = [(i, min(c.error, LARGEST_DRAWN)) for i, c in enumerate(outputs) if not c.ok]
        for points, style, colour, label in (
            (agreeing, ".", pages.JAX, "JAX – PyTorch"),
            (differing, "x", pages.BAD, "out of tolerance"),
        ):
            if points:
                axes.plot(*zip(*points, strict=True), style, ms=6, color=colour, label=label)
        points_are = f"; each point is the worst of {per_point}" if per_point > 1 else ""
        xlabel = f"layer call, in order of execution{points_are}"
        axes.set(yscale="log", xlabel=xlabel, ylabel="relative difference")
        step = max(1, len(outputs) // 12)
        names = [_last_parts(check.name) for check in outputs]
        axes.set_xticks(list(depth)[::step], names[::step], rotation=30, ha="right", fontsize=7)
        axes.set_xlim(-1, len(outputs))
        figure.legend(fontsize=8, loc="outside upper center", ncols=4, frameon=False)
        return pages.inline_svg(figure, name=f"{result.model}: difference against depth")


def gradient_plot(result: Result) -> str | None:
    """The gradients that come closest to their tolerance, the closest first."""
    if not result.gradients:
        return None
    closest = result.gradients[:BARS][::-1]
    shares = [min(closeness(check), LARGEST_DRAWN * 1e3) for check in closest]
    with mpl.rc_context(pages.plot_settings()):
        figure = Figure(figsize=(9, 0.24 * len(closest) + 1.1), layout="constrained")
        axes = figure.subplots()
        least = max(min((share for share in shares if share), default=0.1) / 3, 1e-6)
        colours = [pages.JAX if check.ok else pages.BAD for check in closest]
        places = range(len(closest))
        axes.barh(places, [max(share, least) for share in shares], color=colours, height=0.55)
        axes.axvline(1, color=pages.GOOD, lw=2, label="tolerance")
        axes.set_yticks(places, [check.name for check in closest], fontsize=7)
        axes.set(xscale="log", xlabel="difference of the gradient, as a share of its tolerance")
        axes.set_xlim(min(least / 1.5, 0.3), max(*shares, 1.0) * 2)  # the tolerance is always shown
        axes.xaxis.set_major_locator(LogLocator(numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
        figure.legend(fontsize=8, frameon=False, loc="outside upper right")
        return pages.inline_svg(figure, name=f"{result.model}: gradient differences")


def loss_plot(result: Result) -> str | None:
    """The losses of both training runs, and below how far apart runs are that should be equal."""
    if len(result.losses) < 2:
        return None
    with mpl.rc_context(pages.plot_settings()):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        losses, gaps = figure.subplots(2, sharex=True, height_ratios=(2, 3))
        steps = range(1, len(result.losses) + 1)
        marker = "." if len(steps) <= 20 else ""
        losses.plot(steps, result.losses.pytorch, marker=marker, lw=4, color=pages.TORCH, label="PyTorch")
        losses.plot(steps, result.losses.jax, marker=marker, lw=1.2, color=pages.JAX, label="JAX")
        losses.set(ylabel="loss")
        losses.legend(fontsize=8, frameon=False)
        curves = _gaps(result)
        bottom = min((x for gap, *_ in curves.values() for x in gap if x > 0), default=1e-16) / 4
        for label, (gap, colour, dashes) in curves.items():
            drawn = np.maximum(gap, bottom)
            gaps.plot(steps, drawn, ".", ms=5, color=colour)
            gaps.plot(steps, np.maximum.accumulate(drawn), dashes, color=colour, lw=1.5, label=label)
        gaps.set(yscale="log", xlabel="optimiser step", ylabel="difference of the losses")
        gaps.set_xlim(0.5, len(steps) + 0.5)
        if not all(gap.all() for gap, *_ in curves.values()):  # zeros are drawn at the bottom
            gaps.axhline(bottom, ls=":", lw=0.8, color=pages.NOISE)
            place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
            gaps.annotate("no difference", (0.01, bottom), fontsize=8, **place)
        gaps.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = gaps.get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=2, frameon=False)
        return pages.inline_svg(figure, name=f"{result.model}: losses")


def _gaps(result: Result) -> dict[str, tuple[np.ndarray, str, str]]:
    """Distances between losses, step by step; the colour and the dashes of each."""
    losses = result.losses
    threads, other = losses.threads
    by_type = {"float32": losses.jax_weights_float32, "float64": losses.jax_weights_float64}
    at_equal_weights = by_type.get(result.dtype, [])
    gaps: dict[str, tuple[Sequence[float], Sequence[float], str, str]] = {
        "PyTorch float32 – float64": (losses.pytorch_float32, losses.pytorch_float64, pages.NOISE, "-"),
        f"PyTorch with {threads} – with {other} thread{'s' if other > 1 else ''}": (
            losses.pytorch, losses.pytorch_other_threads, pages.TORCH, "-",
        ),
        "JAX – PyTorch": (losses.jax, losses.pytorch, pages.JAX, "-"),
        "JAX – PyTorch at equal weights": (losses.jax, at_equal_weights, pages.EXTRA, "--"),
    }  # fmt: skip
    return {
        label: (np.abs(np.nan_to_num(np.subtract(a, b))), colour, dashes)
        for label, (a, b, colour, dashes) in gaps.items()
        if len(a) == len(b) == len(losses)  # captures have some of these runs only
    }


def _last_parts(name: str) -> str:
    """The end of a path, so that twelve fit under a plot."""
    parts = name.split(".")
    return "…" + ".".join(parts[-3:]) if len(parts) > 4 else name or "(model)"


def closest_to_tolerance(checks: Sequence[Check]) -> Check | None:
    """The check whose error comes closest to its tolerance, or exceeds it most."""
    return max(checks, key=closeness, default=None)
