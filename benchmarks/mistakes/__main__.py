"""`python -m benchmarks.mistakes`: which share of planted mistakes each rule of comparison finds."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import torch
import tyro

from benchmarks.mistakes import report
from benchmarks.mistakes.cases import ARCHITECTURES, Case, all_cases, run
from jaxmodels import pages
from jaxmodels.atomic import atomic_write
from jaxmodels.models import MODEL_NAMES
from tools.tables import ROOT, update


RESULTS = ROOT / "benchmarks" / "mistakes" / "results.json"
IMAGE = ROOT / "docs" / "images" / "mistakes.svg"
BETWEEN_CLEARINGS = 10  # cases, after which compiled programs are forgotten


@dataclass(frozen=True, kw_only=True)
class Options:
    """Plant mistakes in small ports, compare, and count what is found. A run goes on where the last one ended.

    Attributes:
      output: the file with one entry per case.
      limit: at most so many new cases.
      minutes: begin no case after so many.
      controls: how many correct ports.
      architectures: those of the mistakes and of the ports; by default all.
      only: the kind of mistake, or "correct"; by default all.
      again: run cases that are in the file once more.
      tables: run nothing; write the table and the image of the documentation from the committed results.
    """

    output: Path = RESULTS
    limit: int | None = None
    minutes: float | None = None
    controls: int = 200
    architectures: tuple[str, ...] = (*ARCHITECTURES, *MODEL_NAMES)
    only: str | None = None
    again: bool = False
    tables: bool = False


def main(options: Options) -> None:
    results = _read(options.output)
    if not options.tables:
        unknown = set(options.architectures) - {*ARCHITECTURES, *MODEL_NAMES}
        if unknown:
            sys.exit(
                f"architectures must be of {', '.join((*ARCHITECTURES, *MODEL_NAMES))}; got {', '.join(unknown)}"
            )
        _run(options, results)
        print(report.missed(results))
        print(report.table(results))
        return
    caption = "The share of mistakes that each rule detects, and of correct ports that it rejects"
    update("mistake-rules", f"{report.table(results)}\n![{caption}](images/{IMAGE.name})\n")
    update("mistake-summary", report.summary(results))
    with atomic_write(IMAGE) as path:
        path.write_text(pages.svg_file(report.figure(results), name="mistakes"), encoding="utf-8")


def _run(options: Options, results: dict) -> None:
    cases = [
        case
        for case in all_cases(options.controls, options.architectures)
        if _is_wanted(case, options, results)
    ]
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    for number, case in enumerate(cases[: options.limit], 1):
        if time.monotonic() > end:
            break
        found = run(case)
        print(
            f"{number} of {len(cases)}: {case.name}: {found.verdict}, {found.diagnosis}",
            file=sys.stderr,
            flush=True,
        )
        results["cases"][case.name] = found.as_json()
        results["environment"] = _environment()
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(options.output) as path:
            path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if number % BETWEEN_CLEARINGS == 0:
            jax.clear_caches()


def _is_wanted(case: Case, options: Options, results: dict) -> bool:
    chosen = options.only in (None, case.kind or "correct")
    return chosen and (options.again or case.name not in results["cases"])


def _read(path: Path) -> dict:
    return (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cases": {}, "environment": ""}
    )


def _environment() -> str:
    """When and with which versions, as a sentence."""
    versions = f"jax {jax.__version__}, torch {torch.__version__}"
    day = time.strftime("%Y-%m-%d")
    return f"Measured on {day} on a CPU in float32 with {versions}: `python -m benchmarks.mistakes`."


if __name__ == "__main__":
    main(tyro.cli(Options))
