"""The report of an invented run with every kind of figure, for tests of how a browser shows it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import matplotlib as mpl
import numpy as np

from jaxmodels import pages
from jaxmodels.training import PRESETS
from jaxmodels.training.run.report import write_report
from jaxmodels.training.run.workdir import Workdir, environment
from jaxmodels.training.task import Metric, Sample, Task
from jaxmodels.training.tasks.figures import captions, images


CLASSES = ("grinning face", "person in a lotus position", "flag", "vegetable", "hammer and wrench")


def write(folder: Path) -> None:
    """Writes metrics.jsonl and report.html."""
    folder.mkdir(parents=True)
    workdir = Workdir(folder)
    workdir.metrics_file.write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, 41)))
    names = ("top1", "top5", "mean_class_accuracy", "cross_entropy", "expected_calibration_error")
    results = {
        "metric": {"name": "top1", "better": "higher"},
        "test": dict.fromkeys(names, 0.4512345),
        "baselines": {
            "nearest centroid of the training images": dict.fromkeys(names, 0.2712345),
            "logistic regression on raw pixels": {"top1": 0.3, "cross_entropy": 123456.7},
        },
        "parameters": 12345678,
        "steps": 40,
        "seconds": 61.5,
        "environment": environment(),
        "sessions": [environment(), environment()],
    }
    data = {"data": "Noto emoji, embedded in the package", "train": 1200, "test": 300, "checksum": "f" * 64}
    task = Mock(spec=Task, metric=Metric(name="top1", better="higher"))
    task.name = "classification"  # as an argument it would be the mock's own
    experiment = replace(PRESETS["scalable-vit-emoji"], workdir=folder)
    with mpl.rc_context(pages.plot_settings()):
        write_report(workdir, "scalable-vit-emoji", experiment, task, data, results, samples())


def line(step: int) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    found = {
        "step": step,
        "loss": 3 / step,
        "learning_rate": 1e-3,
        "gradient_norm": 1.0,
        "examples_per_second": 500.0,
    }
    return found | ({"validation_loss": 3.5 / step, "validation_top1": step / 50} if step % 10 == 0 else {})


def samples() -> list[Sample]:
    """Every kind of figure that the tasks draw, and a text."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 8, 8, 3), np.uint8)
    scaled = pixels / 127.5 - 1
    counts = random.integers(0, 30, (len(CLASSES), len(CLASSES))) + 50 * np.eye(len(CLASSES), dtype=int)
    masks = {name: random.random((6, 2, 4, 4)) > 0.5 for name in ("query", "key/value", "feedforward")}
    texts = (
        "a flag with three horizontal stripes of red, white and blue",
        "a face",
        "a hammer",
        "",
        "e",
        "f",
    )
    hits = random.random((3, 6)) > 0.5
    figures = {
        "Inputs": images.input_figure({"clean": scaled, "with noise": scaled}),
        "Confusion matrix": images.confusion_figure(counts, CLASSES),
        "Predictions": images.prediction_figure(
            pixels, np.arange(6) % 5, random.normal(size=(6, 5)), CLASSES
        ),
        "Routed patches": images.routing_figure(pixels, masks),
        "Reconstructions": images.reconstruction_figure({"clean": scaled, "reconstructed": scaled * 0.9}),
        "Islands": images.island_figure(pixels[0], random.normal(size=(7, 4, 4, 3, 8))),
        "Captions": captions.caption_figure(pixels, texts, [["a flag"]] * 6),
        "Retrieval": captions.retrieval_figure(texts[:3], np.stack([pixels] * 3), hits),
    }
    long_line = "| The state of the Union is " + "strong and " * 40
    again = Sample(title="Islands", caption="Titles may repeat.", figure=figures["Islands"])
    text = Sample(title="Generated text", caption="The model wrote what follows.", text=f"{long_line}\nÞ·\n")
    return [
        *(Sample(title=name, caption=name, figure=figure) for name, figure in figures.items()),
        again,
        text,
    ]
