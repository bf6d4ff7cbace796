"""The page of a finished run: its curves and its verdict."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from jaxmodels.training.run.report import _ahead_of, curves, smoothed
from tests.training import sample_run


def test_smoothed() -> None:
    noise = np.random.default_rng(0).normal(size=400)
    smooth = smoothed(3 + noise)
    assert abs(smooth[100:] - 3).max() < 1
    assert smooth[100:].std() < noise.std() / 3
    np.testing.assert_allclose(smoothed(np.full(50, 2.0)), 2.0)  # also at the beginning


def test_smoothing_leaves_out_what_is_missing() -> None:
    values = np.array([np.nan, 1.0, np.nan, 1.0, np.inf])
    np.testing.assert_array_equal(smoothed(values), [np.nan, 1.0, 1.0, 1.0, 1.0])


def test_curves_of_lines_that_lack_values() -> None:
    """A loss that was not finite is null in metrics.jsonl."""
    lines = [
        {"step": 1, "loss": None},
        {"step": 2, "loss": 1.0, "validation_top1": None, "learning_rate": 0.1},
    ]
    figure = curves(lines, "top1")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[:5] == ["loss", "top1, validation", "learning rate", "gradient norm", "examples per second"]


def test_identifiers_are_unique(tmp_path: Path) -> None:
    """Also where titles repeat and images are equal."""
    sample_run.write(tmp_path / "run")
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    identifiers = re.findall(r'\bid="([^"]*)"', html)
    assert [name for name, times in Counter(identifiers).items() if times > 1] == []
    assert set(re.findall(r'href="#([^"]*)"', html)) <= set(identifiers)


def test_the_verdict() -> None:
    baselines = {"a": {"top1": 0.5}, "b": {"top1": 0.7}, "c": {"other": 1.0}}
    results = {"metric": {"name": "top1", "better": "higher"}, "test": {"top1": 0.6}, "baselines": baselines}
    assert _ahead_of(results) == (1, 2)
    assert _ahead_of(results | {"metric": {"name": "top1", "better": "lower"}}) == (1, 2)
    assert _ahead_of(results | {"test": {"top1": None}}) == (0, 2)
