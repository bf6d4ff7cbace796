"""A finished run as one self-contained page: results beside their baselines, curves, samples."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmodels import pages
from jaxmodels.atomic import atomic_write
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.run.progress import as_text, describe_data, duration
from jaxmodels.training.run.workdir import Workdir
from jaxmodels.training.task import Sample, Task


matplotlib.use("Agg", force=False)


def write_report(
    workdir: Workdir,
    preset: str,
    experiment: Experiment,
    task: Task,
    data: Mapping[str, Any],
    results: Mapping[str, Any],
    samples: Sequence[Sample],
) -> None:
    """Writes report.html into the run's folder, complete or not at all.

    Args:
      workdir: the run's folder; its metrics are plotted.
      preset: name of the preset, for the title.
      experiment: whose settings are listed.
      task: what was trained.
      data: what `task.describe()` returned.
      results: the content of results.json.
      samples: what `task.samples()` returned, drawn under `pages.plot_settings`.
    """
    template = resources.files("jaxmodels.training.run").joinpath("report.html.j2").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    names = list(results["test"])
    rows = [("this run", results["test"]), *results["baselines"].items()]
    ahead, compared = _ahead_of(results)
    html = page.render(
        style=pages.stylesheet(),
        title=preset or task.name,
        task=task.name,
        names=names,
        rows=[(name, {metric: values.get(metric) for metric in names}) for name, values in rows],
        metric=results["metric"],
        value=results["test"][results["metric"]["name"]],
        ahead=ahead,
        compared=compared,
        curves=_curves(workdir.read_metrics(), task.metric.name),
        samples=[
            {
                "title": sample.title,
                "caption": sample.caption,
                # Titles may be equal, identifiers in a page may not.
                "figure": _svg(sample.figure, f"{sample.title} {number}") if sample.figure else None,
                "text": sample.text,
            }
            for number, sample in enumerate(samples, start=1)
        ],
        model=repr(str(workdir.model)),
        has_preprocessing=(workdir.model / "preprocessing.json").exists(),
        parameters=results["parameters"],
        steps=results["steps"],
        time=duration(results["seconds"]),
        data=describe_data(data),
        settings={name: as_text(value) for name, value in _flat(experiment.describe()).items()},
        sessions=results["sessions"],
    )
    with atomic_write(workdir.report) as path:
        path.write_text(html, encoding="utf-8", errors="replace")


def _ahead_of(results: Mapping[str, Any]) -> tuple[int, int]:
    """How many baselines the run is ahead of by the main metric, and how many have that metric."""
    name, better = results["metric"]["name"], results["metric"]["better"]
    own = results["test"][name]
    others = [values[name] for values in results["baselines"].values() if name in values]
    if own is None:
        return 0, len(others)
    return sum(own > other if better == "higher" else own < other for other in others), len(others)


def _curves(lines: Sequence[Mapping[str, Any]], metric: str) -> str | None:
    if not lines:
        return None
    with matplotlib.rc_context(pages.plot_settings()):
        return _svg(curves(lines, metric), "loss, validation metric and other curves over the steps")


def curves(lines: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Loss, main metric, learning rate, gradient norm and speed over the steps."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    grid = figure.subplots(2, 3)
    steps = _column(lines, "step")
    loss, smooth = grid[0, 0], smoothed(_column(lines, "loss"))
    loss.plot(steps, _column(lines, "loss"), color=pages.JAX, lw=0.8, alpha=0.35, label="training")
    loss.plot(steps, smooth, color=pages.JAX, lw=1.6, label="training, smoothed")
    _plot_points(loss, lines, "validation_loss", "validation")
    loss.set_ylabel("loss")
    loss.legend(frameon=False, fontsize=8)
    _plot_points(grid[0, 1], lines, f"validation_{metric}", "")
    grid[0, 1].set_ylabel(f"{metric.replace('_', ' ')}, validation")
    others = ("learning_rate", "gradient_norm", "examples_per_second")
    for axes, name in zip([grid[0, 2], *grid[1]], others, strict=False):
        axes.plot(steps, _column(lines, name), color=pages.JAX, lw=1.2)
        axes.set_ylabel(name.replace("_", " "))
    grid[1, 2].axis("off")
    for axes in grid.flat[:5]:
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.5)
    return figure


def smoothed(values: Float[np.ndarray, " n"], share: float = 0.05) -> Float[np.ndarray, " n"]:
    """A moving average that looks back over about this share of the run; what is not finite is left out."""
    decay = 1 - 1 / max(1, share * len(values))
    total = weight = 0.0
    averages = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if np.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
        if weight:
            averages[i] = total / weight
    return averages


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> Float[np.ndarray, " n"]:
    """The values of one metric; nan where a line has none."""
    return np.array([np.nan if line.get(name) is None else line[name] for line in lines], float)


def _plot_points(axes: Axes, lines: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    measured = [line for line in lines if line.get(name) is not None]
    steps, values = _column(measured, "step"), _column(measured, name)
    axes.plot(steps, values, "o-", ms=4, color=pages.TORCH, label=label)


def _svg(figure: Figure, title: str) -> str:
    return pages.inline_svg(figure, name=title)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under the names of their flags."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix + key.replace("_", "-")
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
