"""`jaxmodels demo`: train a model in JAX, take it to PyTorch, compare everything, time both, one page about it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from jaxmodels.atomic import atomic_write
from jaxmodels.compare import command
from jaxmodels.compare.torch_training import TorchTask
from jaxmodels.training import PRESETS, train


PRESET = "scalable-vit-emoji"
STEPS = 400  # about a minute on two CPU cores
ROOT = Path(__file__).parents[1]


def run(output: Path) -> int:
    """Everything in turn; returns 0 when training ended well and all comparisons are inside tolerance.

    Raises:
      ValueError, OSError: `output` is a file, or cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder; got {output}")
    workdir = output / "train"
    if (workdir / "run.json").exists():  # of an earlier demo
        shutil.rmtree(workdir)
    print(f"1. training {PRESET} for {STEPS} steps in JAX", flush=True)
    experiment = replace(PRESETS[PRESET], workdir=workdir, steps=STEPS)
    if status := train(experiment, preset=PRESET):
        return status

    print("2. the trained weights in PyTorch", flush=True)
    task = experiment.task()
    ours = json.loads((workdir / "results.json").read_text())["test"]
    theirs = task.evaluate(TorchTask(task).load(workdir / "model").call, "test")
    for name, value in ours.items():
        print(f"   test {name}: JAX {value:.6f}, PyTorch {theirs[name]:.6f}", flush=True)
    same = theirs[task.metric.name] == ours[task.metric.name]

    print("3. the trained model and all five fresh ones, layer by layer and gradient by gradient", flush=True)
    trained = command.run(("scalable_vit",), checkpoint=workdir / "model", output=output / "compare-trained")
    fresh = command.run((), output=output / "compare")

    print("4. time and memory on both sides", flush=True)
    timed = benchmark(output / "benchmarks")
    _write(output, ours, theirs, same=same)
    print(f"everything on one page: {output / 'report.html'}")
    return int(not same) or trained or fresh or timed


def benchmark(output: Path) -> int:
    """The exit status of the quick benchmark, whose report is in `output` then; 0 where there is none to run."""
    if not (ROOT / "benchmarks" / "__main__.py").exists() or not (ROOT / "pyproject.toml").exists():
        print("   left out: the benchmarks are in the repository, not in the installed package", flush=True)
        return 0
    (output / "report.html").unlink(missing_ok=True)  # of an earlier demo
    words = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output.resolve())]
    return subprocess.run(words, cwd=ROOT, check=False).returncode


def _write(output: Path, ours: dict[str, float], theirs: dict[str, float], *, same: bool) -> None:
    """report.html holds the pages of all parts, report.json their numbers."""
    template = resources.files("jaxmodels").joinpath("demo.html.j2").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    parts: list[tuple[str, Any]] = [
        ("Trained in JAX", "train"),
        ("The trained weights on both sides", "compare-trained"),
        ("All five models with fresh weights on both sides", "compare"),
    ]
    if (output / "benchmarks" / "report.html").exists():
        parts.append(("Time on both sides", "benchmarks"))
    html = page.render(
        names=list(ours),
        rows=[("JAX", list(ours.values())), ("PyTorch, the same weights", [theirs[name] for name in ours])],
        same=same,
        parts=[
            (title, (output / folder / "report.html").read_text(encoding="utf-8")) for title, folder in parts
        ],
    )
    with atomic_write(output / "report.html") as path:
        path.write_text(html, encoding="utf-8")
    report = json.loads((output / "compare" / "report.json").read_text())
    report["trained"] = {
        "jax": ours,
        "pytorch": theirs,
        **json.loads((output / "compare-trained" / "report.json").read_text())["models"][0],
    }
    with atomic_write(output / "report.json") as path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
