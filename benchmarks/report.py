"""results.json, and what is made of it: tables, one HTML page, and what moved since an earlier run."""

import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal, NamedTuple

from benchmarks import plots
from jaxmodels.atomic import atomic_write


Results = dict[str, Any]
Cell = dict[str, Any]  # one entry of results["cells"]
NEEDED = ("model", "mode", "size", "precision", "implementation", "median_ms", "q1_ms", "q3_ms")
OTHERS = ("eager", "compile", "torchax")  # what JAX is set against
NAMES = {"eager": "eager", "compile": "torch.compile", "torchax": "torchax", "jax": "JAX"}
# Dense FLOP/s of the data sheet; model FLOP utilisation is the share of it.
DATA_SHEET = {"H200": {"bfloat16": 990e12, "float32": 67e12}}
NONE = "–"


class Ratio(NamedTuple):
    """Time of JAX over that of another implementation.

    Attributes:
      value: of the medians.
      noise: relative; the larger of A against A and half the interquartile range of the ratio over the rounds.
    """

    value: float
    noise: float

    @property
    def verdict(self) -> Literal["ahead", "behind", "level"]:
        if abs(self.value - 1) <= self.value * self.noise:
            return "level"
        return "ahead" if self.value < 1 else "behind"

    def __str__(self) -> str:
        text = f"{self.value:.2f} ± {self.value * self.noise:.2f}"
        return {"ahead": f"**{text}**", "behind": text, "level": f"{text} (noise)"}[self.verdict]


@dataclass(frozen=True)
class Row:
    """All implementations of one model, size, mode and precision."""

    key: tuple[str, str, str, str]
    cells: dict[str, Cell]

    @property
    def name(self) -> str:
        return " ".join(self.key)

    def median(self, implementation: str) -> float | None:
        return self.cells.get(implementation, {}).get("median_ms")

    def again(self) -> float | None:
        """A against A: relative difference of two columns that are the same."""
        for cell in self.cells.values():
            if cell.get("again_ms") and cell["median_ms"]:
                return cell["again_ms"] / cell["median_ms"] - 1
        return None

    def noise(self, implementation: str) -> float:
        """Relative noise of one time: half the interquartile range, or A against A where that is more."""
        cell = self.cells[implementation]
        return max((cell["q3_ms"] - cell["q1_ms"]) / 2 / cell["median_ms"], abs(self.again() or 0))

    def ratio(self, other: str) -> Ratio | None:
        """JAX over `other`, or None where one of them was not timed."""
        ours, theirs = self.median("jax"), self.median(other)
        if not ours or not theirs:
            return None
        turns = [self.cells[name].get("rounds_ms", []) for name in ("jax", other)]
        if len(turns[0]) == len(turns[1]) > 1:  # what slows a whole round down cancels
            q1, _, q3 = quantiles([a / b for a, b in zip(*turns, strict=True)], n=4, method="inclusive")
            spread = (q3 - q1) / 2 / (ours / theirs)
        else:
            spread = max(self.noise("jax"), self.noise(other))
        return Ratio(ours / theirs, max(spread, abs(self.again() or 0)))


def read(path: Path) -> Results:
    """A results.json.

    Raises:
      FileNotFoundError, OSError: it is not there or cannot be read.
      ValueError: it is damaged, or something else.
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
        raise ValueError(f'{path} is no results file of this benchmark: it needs "environment" and "cells"')
    for name in ("cells", "curves"):
        for number, cell in enumerate(parts.get(name, [])):
            missing = [key for key in NEEDED if not isinstance(cell, dict) or key not in cell]
            if missing:
                raise ValueError(f"{path} is damaged: {name}[{number}] lacks {', '.join(missing)}")
    return results


def write(results: Results, folder: Path) -> None:
    """results.json, whole or not at all."""
    with atomic_write(folder / "results.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def write_report(results: Results, folder: Path) -> None:
    """Plots, results.md and report.html beside results.json."""
    pictures = plots.write(rows(results), curves(results), folder)
    parts = [
        ("Time", *main_table(results)),
        ("First calls, memory, arithmetic", *detail_table(results)),
        *([("How time and memory grow", *curve_table(results))] if results.get("curves") else []),
    ]
    text = "# Benchmark\n\n" + f"{summary(results)}\n\n{measured_on(results)}\n\n"
    text += "\n".join(f"## {title}\n\n{markdown(head, body)}" for title, head, body in parts)
    text += "\n" + "\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures) + "\n"
    with atomic_write(folder / "results.md") as path:
        path.write_text(text, encoding="utf-8")
    with atomic_write(folder / "report.html") as path:
        path.write_text(page(results, parts, pictures), encoding="utf-8")


def rows(results: Results) -> list[Row]:
    """The cells by model, size, mode and precision, in the order of measurement."""
    found: dict[tuple[str, str, str, str], Row] = {}
    for cell in results["cells"]:
        key = (cell["model"], cell["size"], cell["mode"], cell["precision"])
        found.setdefault(key, Row(key, {})).cells[cell["implementation"]] = cell
    return list(found.values())


def curves(results: Results) -> dict[str, list[Row]]:
    """The points of every model's curve in turn."""
    found: dict[str, dict[str, Row]] = {}
    for cell in results.get("curves", []):
        points = found.setdefault(cell["model"], {})
        at = json.dumps(cell["at"])
        key = (cell["model"], at, cell["mode"], cell["precision"])
        points.setdefault(at, Row(key, {})).cells[cell["implementation"]] = cell
    return {model: list(points.values()) for model, points in found.items()}


def table(results: Results) -> str:
    """What is printed at the end: the table of times in Markdown."""
    return f"{markdown(*main_table(results))}\n{summary(results)}\n"


def main_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and body: ratios, times with quartiles, noise and agreement."""
    found = rows(results)
    others = [name for name in OTHERS if any(row.median(name) for row in found)]
    sides = [name for name in ("jax", *others) if any(row.median(name) for row in found)]
    head = ["model", "size", "mode", "precision"]
    head += [f"JAX / {NAMES[name]}" for name in others] + [f"{NAMES[name]}, ms" for name in sides]
    head += ["A / A", "distance"]
    body = []
    for row in found:
        again = row.again()
        errors = [cell["error"] for cell in row.cells.values() if cell.get("error") is not None]
        body.append(
            [
                *row.key,
                *(str(row.ratio(name) or NONE) for name in others),
                *(_time(row.cells.get(name)) for name in sides),
                NONE if again is None else f"{again:+.1%}",
                f"{max(errors):.0e}" if errors else NONE,
            ]
        )
    return head, body


def detail_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and body: first calls, memory, arithmetic and how much of the machine that is."""
    peaks, floors = results.get("gemm_flop_per_s", {}), results.get("floors", {})
    sheet = next((v for k, v in DATA_SHEET.items() if k in results["environment"].get("device", "")), {})
    head = ["model", "size", "mode", "precision", "", "first call, s", "compiled before, s"]
    head += ["peak memory, MB", "libraries of it", "a call adds", "GFLOP", "GFLOP/s", "of GEMM peak"]
    head += (["MFU"] if sheet else []) + (["floor, ms", "× floor"] if floors else [])
    body = []
    for row in rows(results):
        for name, cell in row.cells.items():
            speed, peak = cell.get("flop_per_s"), peaks.get(row.key[3])
            entry = [
                _number(cell.get("first_call_s"), ".2f"),
                _number(cell.get("warm_first_call_s"), ".2f"),
                _number(cell.get("peak_mb"), ",.0f"),
                _number(cell.get("libraries_mb"), ",.0f"),
                _number(call_mb(cell), ",.0f"),
                _number(cell.get("flop"), ",.1f", 1e-9),
                _number(speed, ",.0f", 1e-9),
                _number(speed and peak and speed / peak, ".0%"),
            ]
            if sheet:
                limit = sheet.get(row.key[3])
                entry.append(_number(speed and limit and speed / limit, ".0%"))
            if floors:
                floor = floors.get(row.key[0], {}).get(row.key[2]) if row.key[3] == "bfloat16" else None
                ratio = cell["median_ms"] and floor and cell["median_ms"] / floor
                entry += [_number(floor, ".1f"), _number(ratio, ".1f")]
            body.append([*row.key, NAMES[name], *entry])
    return head, body


def call_mb(cell: Cell) -> float | None:
    """What a call needs besides what lies in memory between calls: weights, optimiser, libraries, programs."""
    peak, rest = cell.get("peak_mb"), cell.get("rest_mb")
    return None if peak is None or rest is None else peak - rest


def curve_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and body: every point of every curve."""
    head = ["model", "", "at", "JAX / eager", "JAX, ms", "eager, ms", "JAX, MB", "eager, MB"]
    body = []
    for model, points in curves(results).items():
        for row in points:
            cell = next(iter(row.cells.values()))
            sides = [row.cells.get(name) for name in ("jax", "eager")]
            memory = [_number((side or {}).get("peak_mb"), ",.0f") for side in sides]
            at = plots.place(cell["at"])
            body.append(
                [model, cell["curve"], at, str(row.ratio("eager") or NONE), *map(_time, sides), *memory]
            )
    return head, body


def summary(results: Results) -> str:
    """Who is ahead in how many rows, and what could not take part."""
    found = rows(results)
    sentences = []
    for name in OTHERS:
        verdicts = [ratio.verdict for row in found if (ratio := row.ratio(name)) is not None]
        if verdicts:
            ahead, behind = verdicts.count("ahead"), verdicts.count("behind")
            sentences.append(
                f"Against {NAMES[name]} JAX is ahead in {ahead} of {len(verdicts)} rows, behind in {behind}, "
                f"and {len(verdicts) - ahead - behind} are inside the noise."
            )
    for name, reason in results.get("absent", {}).items():
        if reason:
            sentences.append(f"{NAMES[name]} is missing: {reason}.")
    failures = Counter(
        (NAMES[name], cell["failure"])
        for row in found
        for name, cell in row.cells.items()
        if cell.get("failure")
    )
    sentences += [f"{name} fails in {count} rows: {reason}." for (name, reason), count in failures.items()]
    return " ".join(sentences) or "Nothing was timed against anything else."


def measured_on(results: Results) -> str:
    """Machine, versions, commit and command in a sentence."""
    env = results["environment"]
    versions = ", ".join(f"{name} {env[name]}" for name in ("jax", "flax", "torch") if name in env)
    busy = env.get("busy_cores") or 0
    others = f" ({busy} of {env.get('cores', '?')} cores busy with something else)" if busy > 0.3 else ""
    return (
        f"{env.get('date', 'no date')}, {env.get('device', 'unknown device')}, {env.get('threads', '?')} threads"
        f"{others}, {env.get('system', '')}, Python {env.get('python', '?')}, {versions}, "
        f"commit {env.get('commit') or 'unknown'}: `{env.get('command', '?')}`"
    )


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table; what starts with a digit stands on the right."""
    lines = list(body)
    right = [all(re.match(r"[*+\-–\d]", line[i]) for line in lines) for i in range(len(head))]
    rule = [" --: " if number else " --- " for number in right]
    text = [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|"]
    text += [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
    return "\n".join(text) + "\n"


def page(
    results: Results, parts: Sequence[tuple[str, list[str], list[list[str]]]], pictures: Sequence[Path]
) -> str:
    """The tables and plots as one self-contained page."""
    sections = []
    for title, head, body in parts:
        lines = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"]
        lines += [f"<tr>{''.join(f'<td>{_bold(cell)}</td>' for cell in line)}</tr>" for line in body]
        sections.append(
            f'<h2>{html.escape(title)}</h2>\n<div class="scroll"><table>\n{chr(10).join(lines)}\n</table></div>'
        )
    images = "\n".join(f'<img alt="{p.stem}" src="{plots.inline(p)}">' for p in pictures)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>JAX against PyTorch: time</title>
<style>
 body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem; color: #222; }}
 table {{ border-collapse: collapse; font-size: .86rem; }}
 th, td {{ text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #eee; white-space: nowrap; }}
 th {{ background: #f6f6f6; }} img {{ max-width: 100%; display: block; margin: 1rem 0; }}
 .scroll {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>JAX against PyTorch: time</h1>
<p>{html.escape(summary(results))} Bold: JAX is ahead by more than the noise.</p>
{images}
{chr(10).join(sections)}
<p>{html.escape(measured_on(results))}</p>
</body>
</html>
"""


def _bold(cell: str) -> str:
    return re.sub(r"\*\*(.*?)\*\*", r"<b>\1</b>", html.escape(cell))


def _time(cell: Cell | None) -> str:
    if not cell or not cell["median_ms"]:
        return NONE
    digits = 2 if cell["median_ms"] < 100 else 1 if cell["median_ms"] < 1000 else 0
    q1, median, q3 = (f"{cell[key]:.{digits}f}" for key in ("q1_ms", "median_ms", "q3_ms"))
    return f"{median} ({q1}–{q3})"


def _number(value: float | None, form: str, factor: float = 1) -> str:
    return NONE if value is None else format(value * factor, form)
