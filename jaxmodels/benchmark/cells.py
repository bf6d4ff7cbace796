"""One cell of results.json, from what the processes measured."""

import statistics
from collections.abc import Mapping
from typing import Any

from jaxmodels.benchmark.kinds import Implementation
from jaxmodels.benchmark.rows import Cell


def cell_of(
    row: Mapping[str, str],
    name: Implementation,
    alone: Mapping[Implementation, Mapping[str, Any]],
    in_turn: Mapping[str, Any] | None,
    *,
    last: Implementation,
) -> Cell:
    """The numbers of one implementation in a row.

    Args:
      row: model, mode, size and precision.
      name: the implementation.
      alone: what the processes with one implementation measured.
      in_turn: what the process with all implementations measured, if there was one.
      last: the implementation that was timed last, and once more where the noise was measured.
    """
    times = in_turn["times"].get(name, []) if in_turn else []
    q1, median, q3 = (
        (1000 * t for t in statistics.quantiles(times, n=4, method="inclusive"))
        if len(times) > 1
        else [None] * 3
    )
    flop = alone.get("eager", {}).get("flop") or (in_turn or {}).get("flop")
    first = alone[name].get("first_call_s")
    warm = in_turn["warm_first_call_s"].get(name) if in_turn else None
    found: Cell = {
        **row,
        "implementation": name,
        "median_ms": median,
        "q1_ms": q1,
        "q3_ms": q3,
        "first_call_s": warm if first is None else first,
        "warm_first_call_s": None if first is None else warm,
        "peak_mb": alone[name].get("peak_mb"),
        "libraries_mb": alone[name].get("libraries_mb"),
        "rest_mb": alone[name].get("rest_mb"),
        "flop": flop,
        "flop_per_s": flop / median * 1000 if flop and median else None,
        "error": in_turn["errors"].get(name) if in_turn else None,
        "rounds_ms": [round(1000 * t, 4) for t in times],
    }
    if "failure" in alone[name]:
        found["failure"] = alone[name]["failure"]
    if name == "jax":
        found |= {key: alone[name].get(key) for key in ("xla_flop", "xla_bytes")}
    if in_turn and name == last and "again" in in_turn["times"]:
        found["again_ms"] = 1000 * statistics.median(in_turn["times"]["again"])
    return found
