"""results.json: how it is written and read, and its cells arranged as rows with ratios and noise."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal, NamedTuple

from jaxmodels.atomic import atomic_write


Results = dict[str, Any]  # results.json
Cell = dict[str, Any]  # one entry of results["cells"]
REQUIRED = ("model", "mode", "size", "precision", "implementation", "median_ms", "q1_ms", "q3_ms")
PYTORCH = ("eager", "compile", "torchax")  # the implementations that JAX is compared with
LABELS = {"eager": "eager", "compile": "torch.compile", "torchax": "torchax", "jax": "JAX"}


class Ratio(NamedTuple):
    """Time of JAX divided by the time of another implementation.

    Attributes:
      value: ratio of the medians.
      noise: relative noise of `value`. It is half the interquartile range of the ratio over the rounds, or the
        difference of JAX from itself (A against A) if that is larger.
    """

    value: float
    noise: float

    @property
    def verdict(self) -> Literal["ahead", "behind", "level"]:
        """Whether JAX is ahead; "level" if the difference from 1 is not larger than the noise."""
        if abs(self.value - 1) <= self.value * self.noise:
            return "level"
        return "ahead" if self.value < 1 else "behind"

    def __str__(self) -> str:
        text = f"{self.value:.2f} ± {self.value * self.noise:.2f}"
        return {"ahead": f"**{text}**", "behind": text, "level": f"{text} (noise)"}[self.verdict]


@dataclass(frozen=True)
class Row:
    """The cells of all implementations for one model, size, mode and precision.

    Attributes:
      key: (model, size, mode, precision).
      cells: the cell of each implementation.
    """

    key: tuple[str, str, str, str]
    cells: dict[str, Cell]

    @property
    def name(self) -> str:
        return " ".join(self.key)

    def median(self, implementation: str) -> float | None:
        """Median time in ms; None if the implementation was not timed."""
        return self.cells.get(implementation, {}).get("median_ms")

    def a_against_a(self) -> float | None:
        """Relative difference of two timings of the same implementation; None if none was timed twice."""
        for cell in self.cells.values():
            if cell.get("again_ms") and cell["median_ms"]:
                return cell["again_ms"] / cell["median_ms"] - 1
        return None

    def noise(self, implementation: str) -> float:
        """Relative noise of one time: half its interquartile range, or A against A if that is larger."""
        cell = self.cells[implementation]
        return max((cell["q3_ms"] - cell["q1_ms"]) / 2 / cell["median_ms"], abs(self.a_against_a() or 0))

    def ratio(self, other: str) -> Ratio | None:
        """JAX divided by `other`; None if one of them was not timed."""
        jax, theirs = self.median("jax"), self.median(other)
        if not jax or not theirs:
            return None
        rounds = [self.cells[name].get("rounds_ms", []) for name in ("jax", other)]
        if len(rounds[0]) == len(rounds[1]) > 1:
            # Whatever slows down a whole round slows down both, so it cancels in the ratio of that round.
            q1, _, q3 = quantiles([a / b for a, b in zip(*rounds, strict=True)], n=4, method="inclusive")
            noise = (q3 - q1) / 2 / (jax / theirs)
        else:
            noise = max(self.noise("jax"), self.noise(other))
        return Ratio(jax / theirs, max(noise, abs(self.a_against_a() or 0)))


def read(path: Path) -> Results:
    """Reads a results.json.

    Raises:
      FileNotFoundError, OSError: the file does not exist or cannot be read.
      ValueError: the file is damaged, or is not a results file of this benchmark.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a results.json inside one is needed")
    if not path.exists():
        raise FileNotFoundError(f"no such results file: {path}")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or not JSON: {error}") from error
    parts = results if isinstance(results, dict) else {}
    if not isinstance(parts.get("environment"), dict) or not isinstance(parts.get("cells"), list):
        raise ValueError(
            f'{path} is not a results file of this benchmark: "environment" or "cells" is missing'
        )
    for name in ("cells", "curves"):
        for number, cell in enumerate(parts.get(name, [])):
            missing = [key for key in REQUIRED if not isinstance(cell, dict) or key not in cell]
            if missing:
                raise ValueError(f"{path} is damaged: {name}[{number}] lacks {', '.join(missing)}")
    return results


def write(results: Results, folder: Path) -> None:
    """Writes results.json; an interrupted write leaves the earlier file as it was."""
    _write(results, folder / "results.json")


def _write(results: Results, file: Path) -> None:
    with atomic_write(file) as path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def keep(results: Results, path: Path) -> None:
    """Writes the results to a file of its own; an interrupted write leaves the earlier file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(with_earlier(results, read(path)) if path.exists() else results, path)


def with_earlier(results: Results, before: Results) -> Results:
    """The results with the first calls, memory and curves of an earlier run, if they have none themselves.

    Times and ratios are all of one run. Whose the rest is stands under "earlier": the environment of that run.
    """
    if results.get("curves") or any(cell.get("peak_mb") for cell in results["cells"]):
        return results
    known = {(row.key, name): cell for row in rows(before) for name, cell in row.cells.items()}
    found = [_alone(known.get((key_of(cell), cell["implementation"]))) for cell in results["cells"]]
    if not any(found):
        return results
    cells = [cell | alone for cell, alone in zip(results["cells"], found, strict=True)]
    earlier = before.get("earlier", before["environment"])
    return results | {"cells": cells, "curves": before.get("curves", []), "earlier": earlier}


def _alone(cell: Cell | None) -> Cell:
    """What processes with one implementation measured: first calls and memory."""
    if cell is None or not cell.get("peak_mb"):
        return {}
    names = (
        "first_call_s",
        "warm_first_call_s",
        "peak_mb",
        "libraries_mb",
        "rest_mb",
        "xla_flop",
        "xla_bytes",
    )
    return {name: cell.get(name) for name in names}


def key_of(cell: Cell) -> tuple[str, str, str, str]:
    """What the cells of one row have in common."""
    return cell["model"], cell["size"], cell["mode"], cell["precision"]


def rows(results: Results) -> list[Row]:
    """The cells grouped by model, size, mode and precision, in the order of measurement."""
    found: dict[tuple[str, str, str, str], Row] = {}
    for cell in results["cells"]:
        key = key_of(cell)
        found.setdefault(key, Row(key, {})).cells[cell["implementation"]] = cell
    return list(found.values())


def curves(results: Results) -> dict[str, list[Row]]:
    """For each model the points of its scaling curve, as rows whose "size" is the point in JSON."""
    found: dict[str, dict[str, Row]] = {}
    for cell in results.get("curves", []):
        points = found.setdefault(cell["model"], {})
        at = json.dumps(cell["at"])
        key = (cell["model"], at, cell["mode"], cell["precision"])
        points.setdefault(at, Row(key, {})).cells[cell["implementation"]] = cell
    return {model: list(points.values()) for model, points in found.items()}


def point_label(at: Any) -> str:
    """A point of a scaling curve as text: "512", or "6 × 12"."""
    return " × ".join(map(str, at)) if isinstance(at, list | tuple) else str(at)
