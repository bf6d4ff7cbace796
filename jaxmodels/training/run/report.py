"""A finished run as one self-contained page: results beside their baselines, curves, samples."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from jaxmodels.atomic import atomic_write
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.run.progress import describe_data, minutes
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
    """Writes report.html into the run's folder, whole or not at all."""
    template = resources.files("jaxmodels.training.run").joinpath("report.html.j2").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    lines = workdir.read_metrics()
    names = list(results["test"])
    rows = [("this run", results["test"]), *results["baselines"].items()]
    html = page.render(
        title=preset or task.name,
        task=task.name,
        names=names,
        rows=[(name, [values.get(metric) for metric in names]) for name, values in rows],
        metric=results["metric"],
        curves=_png(curves(lines, task.metric.name)) if lines else None,
        samples=[
            {
                "title": sample.title,
                "caption": sample.caption,
                "image": _png(sample.figure) if sample.figure is not None else None,
                "text": sample.text,
            }
            for sample in samples
        ],
        parameters=results["parameters"],
        steps=results["steps"],
        time=minutes(results["seconds"]),
        data=describe_data(data),
        settings=_flat(experiment.describe()),
        environment=results["environment"],
    )
    with atomic_write(workdir.report) as path:
        path.write_text(html, encoding="utf-8")


def curves(lines: Sequence[Mapping[str, float]], metric: str) -> Figure:
    """Training loss, the main metric on validation data, and the learning rate, over the steps."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [line["step"] for line in lines]
    left.plot(steps, [line["loss"] for line in lines], color="#1f4e8c", lw=1.2, label="training")
    held_out = [line for line in lines if "validation_loss" in line]
    if held_out:
        at = [line["step"] for line in held_out]
        left.plot(
            at,
            [line["validation_loss"] for line in held_out],
            "o-",
            ms=4,
            color="#d1793b",
            label="validation",
        )
    left.set(xlabel="step", ylabel="loss")
    left.legend(frameon=False, fontsize=8)
    key = f"validation_{metric}"
    measured = [line for line in lines if key in line]
    right.plot(
        [line["step"] for line in measured], [line[key] for line in measured], "o-", ms=4, color="#d1793b"
    )
    right.set(xlabel="step", ylabel=f"{metric.replace('_', ' ')}, validation")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under the names of their flags."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix + key.replace("_", "-")
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
