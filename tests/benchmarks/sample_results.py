"""Invented results, for tests of the reports."""

from pathlib import Path
from typing import Any

from jaxmodels.benchmark import report
from jaxmodels.models import MODEL_NAMES


STILL = (0.98, 0.99, 1.0, 1.01, 1.02)  # a round's time over the median
ENVIRONMENT = {
    "date": "2026-01-01 00:00 UTC",
    "command": "python -m benchmarks",
    "commit": "abc",
    "device": "a processor",
    "cores": 2,
    "threads": 2,
    "system": "Linux x86_64",
    "python": "3.11",
    "jax": "1",
    "torch": "2",
}


def cell(
    implementation: str,
    median_ms: float | None,
    *,
    model: str = "glom",
    size: str = "small",
    mode: str = "forward",
    precision: str = "float32",
    rounds: tuple[float, ...] = STILL,
    **more: Any,
) -> dict[str, Any]:
    """One cell whose rounds are multiples of the median."""
    timed = median_ms is not None
    return {
        "model": model,
        "mode": mode,
        "size": size,
        "precision": precision,
        "implementation": implementation,
        "median_ms": median_ms,
        "q1_ms": median_ms * rounds[1] if timed else None,
        "q3_ms": median_ms * rounds[3] if timed else None,
        "rounds_ms": [median_ms * r for r in rounds] if timed else [],
        "first_call_s": 1.5,
        "peak_mb": 400.0,
        **more,
    }


def results(*cells: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The content of a results.json."""
    return {"environment": dict(ENVIRONMENT), "cells": list(cells), **more}


def curve() -> list[dict[str, Any]]:
    """Three points of a scaling curve with two coordinates each."""
    return [
        cell(side, time * 2**i, curve="levels, iterations", at=[3, 3 * 2**i])
        for i in range(3)
        for side, time in (("eager", 10.0), ("jax", 8.0))
    ]


def widest() -> dict[str, Any]:
    """All implementations of all models in two precisions on a GPU: the widest tables there are."""
    cells = [
        cell(
            side,
            time,
            model=model,
            mode=mode,
            size="medium",
            precision=precision,
            again_ms=time * 1.2,
            error=1e-6,
            warm_first_call_s=12.5,
            peak_mb=123456.0,
            rest_mb=3456.0,
            libraries_mb=12345.0,
            flop=1e15,
            flop_per_s=1e14,
        )
        for model in MODEL_NAMES
        for mode in ("forward", "train")
        for precision in ("float32", "bfloat16")
        for side, time in (("eager", 1234.5), ("compile", 1111.0), ("torchax", 1500.0), ("jax", 1200.0))
    ]
    found = results(*cells, curves=curve())
    found["environment"]["device"] = "NVIDIA H200"
    found["gemm_flop_per_s"] = {"float32": 5e13, "bfloat16": 8e14}
    found["floors"] = {model: {"forward": 100.5, "train": 400.5} for model in MODEL_NAMES}
    return found


def write_report(folder: Path) -> None:
    """The report of the widest results."""
    folder.mkdir(exist_ok=True)
    report.write_report(widest(), folder)
