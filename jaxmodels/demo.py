"""`jaxmodels demo`: train a model in JAX, take it to PyTorch, compare everything, time both, one page about it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from jaxmodels.compare import command
from jaxmodels.compare.torch_training import TorchTask
from jaxmodels.demo_page import write_page
from jaxmodels.training import PRESETS, train
from jaxmodels.training.run.workdir import Workdir


PRESET = "scalable-vit-emoji"
TITLE = f"demo of {PRESET}"
STEPS = 400  # about a minute on two CPU cores
ROOT = Path(__file__).parents[1]


def run(output: Path) -> int:
    """Runs all parts in turn; returns 0 when training ended well and all comparisons are inside tolerance.

    Raises:
      ValueError, OSError: `output` is a file, or cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder; got {output}")
    workdir = output / "train"
    _remove_earlier(workdir)
    print(f"1. training {PRESET} for {STEPS} steps in JAX", flush=True)
    experiment = replace(PRESETS[PRESET], workdir=workdir, steps=STEPS)
    if status := train(experiment, preset=TITLE):
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
    write_page(output, ours, theirs, same=same)
    print(f"everything on one page: {output / 'report.html'}")
    return int(not same) or trained or fresh or timed


def _remove_earlier(workdir: Path) -> None:
    """Removes the run of an earlier demo; ValueError if the folder holds anything else."""
    if not workdir.exists():
        return
    run = Workdir(workdir)
    if not run.run_file.exists() or run.read_run().get("preset") != TITLE:
        raise ValueError(f"{workdir} is not of an earlier demo; choose another --output")
    shutil.rmtree(workdir)


def benchmark(output: Path) -> int:
    """The exit status of the quick benchmark, whose report is in `output` then; 0 where there is none to run."""
    if not (ROOT / "benchmarks" / "__main__.py").exists() or not (ROOT / "pyproject.toml").exists():
        print("   left out: the benchmarks are in the repository, not in the installed package", flush=True)
        return 0
    (output / "report.html").unlink(missing_ok=True)  # of an earlier demo
    words = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output.resolve())]
    return subprocess.run(words, cwd=ROOT, check=False).returncode
