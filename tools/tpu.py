"""What the larger presets need on slices of TPUs, from the TPU's own compiler (extra [tpu]); no TPU is needed.

python -m tools.tpu                                        # compiles what docs/tpu.json lacks, then writes the table
python -m tools.tpu --quick                                # the same with few optimisations: minutes instead of hours
python -m tools.tpu --presets glom-readme --topologies v6e:4x4   # only these, again
python -m tools.tpu --tables                               # only writes the table, from docs/tpu.json

Every compilation takes minutes, in a process of its own. Each result is kept as soon as it is there.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from importlib import metadata
from typing import Any

import tyro

from jaxmodels.atomic import atomic_write
from jaxmodels.benchmark.table import Table
from jaxmodels.training.chips import TPUS
from jaxmodels.training.presets import PRESETS
from tools.tables import ROOT, update


SUMMARY = ROOT / "docs" / "tpu.json"
TOPOLOGIES = ("v5e:2x2", "v6e:2x2", "v6e:4x4", "v5p:2x2x1")
SMALL = ("glom-emoji", "hourglass-sotu", "colt5-vit-emoji", "mammut-emoji", "scalable-vit-emoji")
LARGE = tuple(name for name in PRESETS if name not in SMALL)
HEAD = (
    "preset",
    "slice",
    "changed",
    "memory per chip, GiB",
    "unchanged",
    "messages, MiB",
    "TFLOP",
    "GB",
    "at best, ms",
)
ATTEMPTS = 6
ROOM = 0.85  # of the memory, for the next attempt: its need is an estimate

# Runs in a process of its own, so that what the compiler holds is given back.
CHILD = """
import json, sys
from jaxmodels.training.compilation.command import compile_step, parse
experiment, topology = parse(sys.argv[1:])
print(json.dumps(compile_step(experiment, topology).as_json()))
"""


def main(
    *,
    presets: tuple[str, ...] = (),
    topologies: tuple[str, ...] = (),
    quick: bool = False,
    tables: bool = False,
) -> None:
    """Compile the larger presets for slices of TPUs, and write the table.

    Args:
      presets: compile these again; by default all that are missing.
      topologies: only for these.
      quick: compile at XLA's optimisation level O1. The memory is then an estimate.
      tables: compile nothing; only write the table, from docs/tpu.json.
    """
    if not tables:
        for topology in topologies or TOPOLOGIES:
            for preset in presets or LARGE:
                if presets or f"{preset} {topology}" not in results():
                    _keep(f"{preset} {topology}", fitted(preset, topology, quick=quick))
    update("tpu", text(results()))


def results() -> dict[str, Any]:
    """By preset and topology, as far as they are there."""
    return json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}


def fitted(preset: str, topology: str, *, quick: bool) -> dict[str, Any]:
    """The analysis of a preset with the fewest changes that make it fit; or of the last attempt, or the error."""
    devices = math.prod(int(side) for side in topology.partition(":")[2].split("x"))
    batch = PRESETS[preset].batch_size
    settings: dict[str, int] = {} if batch % devices == 0 else {"batch-size": -(-batch // devices) * devices}
    first: dict[str, Any] | None = None
    result: dict[str, Any] = {}
    for _ in range(ATTEMPTS):
        words = [word for name, value in settings.items() for word in _words(name, value)]
        print(preset, topology, *words, flush=True)
        result = {"settings": words, **compiled([preset, "--topology", topology, *words], quick=quick)}
        if "error" in result or result["memory"]["fits"]:
            break
        first = first or result["memory"]
        changed = changes(result)
        if not changed:
            break
        settings |= changed
    versions = {name: metadata.version(name) for name in ("jax", "flax", "libtpu")}
    return {**result, "quick": quick, "unchanged": first, "versions": versions, "date": f"{date.today()}"}


def compiled(arguments: list[str], *, quick: bool) -> dict[str, Any]:
    """The analysis of one compilation, or {"error": what went wrong}."""
    environment = {**os.environ, **({"JAX_OPTIMIZATION_LEVEL": "O1"} if quick else {})}
    command = [sys.executable, "-c", CHILD, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def changes(analysis: Mapping[str, Any]) -> dict[str, int]:
    """What to try next for a step that does not fit; nothing if there is no more to try."""
    memory, mesh, devices = analysis["memory"], analysis["mesh"], analysis["devices"]
    available = ROOM * memory["capacity"]
    state, rest = memory["arguments"], memory["total"] - memory["arguments"]
    if state > available / 2 and mesh["fsdp"] < devices:
        return {"mesh.fsdp": devices}
    if not analysis["remat"]:
        return {"remat": 1}
    rows = analysis["batch_size"] // devices
    least = analysis["accumulate"] * max(2, rest / max(available - state, 1))
    parts = [n for n in range(1, rows + 1) if rows % n == 0 and n >= least]
    return {"accumulate": parts[0]} if parts else {}


def text(found: Mapping[str, Any]) -> str:
    """The table and its caption."""
    table = Table([*HEAD], [])
    missing: dict[str, list[str]] = {}
    for preset in LARGE:
        for topology in TOPOLOGIES:
            result = found.get(f"{preset} {topology}", {"error": "not tried"})
            if "error" in result:
                missing.setdefault(preset, []).append(topology)
            else:
                table.body.append(_row(preset, topology, result))
    gaps = "; ".join(f"`{preset}` on {', '.join(names)}" for preset, names in missing.items())
    dates = sorted({result["date"] for result in found.values()})
    versions = sorted({f"{n} {v}" for result in found.values() for n, v in result["versions"].items()})
    return (
        f"{table}\n"
        "One step of training, of one chip. Memory is that of arguments, temporaries and program, of all that the chip "
        "has. Unchanged: what the preset needs as it is, where that is too much. Messages: results of collectives. "
        "TFLOP: matrix products. GB: traffic with the chip's memory. At best: the longer of both by the data sheet, "
        "without messages, and as if all products were in bfloat16; nothing was run. "
        "≈: compiled at XLA's optimisation level O1, since all optimisations take up to half an hour. Such a program "
        "needed 22 % more memory where both were compiled (`glom-emoji-gpu` on v5e:2x2); what else depends on the "
        "optimisations is left out. "
        + (f"Not compiled yet: {gaps}. " if gaps else "")
        + f"{' to '.join(dict.fromkeys([*dates[:1], *dates[-1:]]))}, {', '.join(versions)} (`make tpu-table`).\n"
    )


def _row(preset: str, topology: str, result: Mapping[str, Any]) -> list[str]:
    memory, unchanged, gib = result["memory"], result["unchanged"], 2**30
    chip = TPUS[topology.partition(":")[0]]
    quick = result.get("quick", False)
    need = f"{'≈ ' if quick else ''}{memory['total'] / gib:,.1f} of {chip.memory / gib:,.0f}"
    # With few optimisations, messages and traffic are not those of the program that would run.
    seconds, messages, traffic = (
        (None, None, None)
        if quick
        else (result[name] for name in ("seconds_at_best", "collectives", "traffic"))
    )
    return [
        f"`{preset}`",
        topology,
        f"`{' '.join(result['settings'])}`" if result["settings"] else "",
        need if memory["fits"] else f"**{need}**",
        f"{unchanged['total'] / gib:,.1f}" if unchanged else "",
        "–" if messages is None else f"{sum(m['bytes'] for m in messages.values()) / 2**20:,.0f}",
        f"{result['flop'] / 1e12:,.2f}",
        "–" if traffic is None else f"{traffic / 1e9:,.1f}",
        f"{seconds * 1e3:,.1f}" if memory["fits"] and seconds else "–",
    ]


def _words(name: str, value: int) -> list[str]:
    return [f"--{name}"] if name == "remat" else [f"--{name}", str(value)]


def _keep(key: str, result: Mapping[str, Any]) -> None:
    kept = {**results(), key: result}
    with atomic_write(SUMMARY) as path:
        path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
