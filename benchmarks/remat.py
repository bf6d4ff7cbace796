"""What rematerialisation saves and costs: `python -m benchmarks.remat` writes results/remat.json; three minutes.

Training steps of the medium sizes, plain and rematerialised, in turn. Memory is XLA's own account of the compiled
program: what the step needs besides its arguments, gradients included.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.problem import Problem
from jaxmodels.atomic import atomic_write
from jaxmodels.models import MODEL_NAMES, ModelName
from jaxmodels.training.allocator import KEEPING
from tools.tables import Table


SUMMARY = Path(__file__).parent / "results" / "remat.json"
ROUNDS = 9


def main() -> None:
    if not KEEPING.items() <= os.environ.items():  # the C library reads them when a program starts
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.remat"], os.environ | KEEPING)
    from benchmarks.machine import environment

    with tempfile.TemporaryDirectory() as folder:
        models = {name: measure(name, Path(folder)) for name in MODEL_NAMES}
    with atomic_write(SUMMARY) as path:
        summary = {
            "environment": environment("cpu", "python -m benchmarks.remat"),
            "rounds": ROUNDS,
            "models": models,
        }
        path.write_text(json.dumps(summary, indent=1) + "\n")
    print(text(summary))


def measure(model: ModelName, folder: Path) -> dict[str, float]:
    """Median milliseconds and megabytes of a step, plain and rematerialised."""
    from benchmarks.jax_side import JaxSide
    from benchmarks.run import with_files
    from benchmarks.sizes import workload_at
    from benchmarks.worker import Job, interleaved

    job = with_files(
        Job(
            model=model,
            size="medium",
            mode="train",
            precision="float32",
            implementations=("jax",),
            rounds=ROUNDS,
            threads=os.cpu_count() or 1,
            weights="",
            problem="",
        ),
        folder,
    )
    workload, _ = workload_at(model, "medium")
    inputs = Problem.read(Path(job.problem)).inputs
    sides = {
        name: JaxSide(workload, Path(job.weights), inputs, "train", "float32", remat=name == "remat")
        for name in ("plain", "remat")
    }
    times = interleaved(dict(sides), rounds=ROUNDS)
    found: dict[str, float] = {}
    for name, side in sides.items():
        memory = side.lowered().compile().memory_analysis()
        found[f"{name}_mb"] = memory.temp_size_in_bytes / 1e6
        found[f"{name}_ms"] = 1000 * statistics.median(times[name])
    found["gradients_mb"] = sum(4 * x.size for x in sides["plain"].parameters.values()) / 1e6
    return found


def read() -> dict[str, Any]:
    """The committed results/remat.json."""
    return json.loads(SUMMARY.read_text(encoding="utf-8"))


def text(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    head = ["model, medium", "memory of a step, MB", "rematerialised", "share", "gradients alone", "time"]
    body = [
        [
            f"`{name}`",
            f"{found['plain_mb']:.0f}",
            f"{found['remat_mb']:.0f}",
            f"{found['remat_mb'] / found['plain_mb']:.0%}",
            f"{found['gradients_mb']:.0f}",
            f"× {found['remat_ms'] / found['plain_ms']:.2f}",
        ]
        for name, found in summary["models"].items()
    ]
    env = summary["environment"]
    return (
        f"{Table(head, body)}\nMemory besides weights, moments and inputs, from XLA's account of the compiled "
        "program; gradients need not all exist at once. GLOM keeps little to begin with: the steps of its loop always "
        f"recompute what is not a product. Ratio of the medians of {summary['rounds']} turns each; {env['date']}, "
        f"{env['device']}, {env['cores']} cores, jax {env['jax']}.\n"
    )


if __name__ == "__main__":
    main()
