"""Trains every task on two CPU cores and writes the tables of results; `make results` runs it.

    python -m tools.results            # runs what is missing under out/results, then writes the tables
    python -m tools.results --tables   # only writes the tables, from docs/results.json

Every preset runs once as it is, and its exported weights are evaluated in PyTorch as well. A short form runs with three
seeds in JAX and three in a plain PyTorch loop over torch_reference: the same configuration and batches, other initial
weights. An interrupted call continues where it stopped.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import tyro

from jaxmodels.benchmark.table import Table
from tools.tables import ROOT, update


OUT = ROOT / "out" / "results"
SUMMARY = ROOT / "docs" / "results.json"
SEEDS = range(3)


class Row(NamedTuple):
    """One preset with its flags.

    Attributes:
      label: the task in words.
      command: arguments of `jaxmodels train`, without the folder.
      metrics: (key, name, format) of those that are shown, the main one first.
      short: steps of the short form; None if there is none.
    """

    label: str
    command: str
    metrics: tuple[tuple[str, str, str], ...]
    short: int | None


PERCENT, PLAIN, DECIBEL = "{:.1%}", "{:.3f}", "{:.2f} dB"
ACCURACY = (("top1", "top-1", PERCENT), ("top5", "top-5", PERCENT))
ROWS = (
    Row(
        "next byte of the years 2011–2021",
        "hourglass-sotu",
        (("bits_per_byte", "bits per byte", PLAIN),),
        1500,
    ),
    Row("emoji group, unseen style", "scalable-vit-emoji", ACCURACY, 400),
    Row("emoji group, unseen concepts", "scalable-vit-emoji --protocol within-style", ACCURACY, None),
    Row("emoji group, unseen style", "colt5-vit-emoji", ACCURACY, 300),
    Row("emoji group, unseen concepts", "colt5-vit-emoji --protocol within-style", ACCURACY, None),
    Row(
        "captions and retrieval, unseen style",
        "mammut-emoji",
        (
            ("image_to_text_recall_at_5", "recall@5, image → text", PERCENT),
            ("text_to_image_recall_at_5", "recall@5, text → image", PERCENT),
            ("caption_bits_per_byte", "caption, bits per byte", PLAIN),
        ),
        200,
    ),
    Row(
        "denoising, unseen style",
        "glom-emoji",
        (("psnr", "PSNR", DECIBEL), ("probe_top1", "probe, top-1", PERCENT)),
        300,
    ),
)


def main(*, tables: bool = False) -> None:
    """Train every task and write the tables of results.

    Args:
      tables: train nothing; only write the tables, from docs/results.json.
    """
    if not tables:
        rows = [measure(row) for row in ROWS]
        SUMMARY.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    summary = json.loads(SUMMARY.read_text())
    update("results", results_text(summary))
    update("seeds", seeds_text(summary))


def measure(row: Row) -> dict[str, Any]:
    """Everything that the tables show of one row."""
    name = "-".join(word for word in row.command.split() if not word.startswith("--"))
    results = run(row.command, OUT / name)
    measured: dict[str, Any] = {
        "label": row.label,
        "command": row.command,
        **{key: results[key] for key in ("metric", "test", "baselines", "parameters", "steps", "seconds")},
        "minutes": results["wall_seconds"] / 60,
        "pytorch": once(OUT / name / "pytorch.json", lambda: score(row.command, OUT / name)),
    }
    if row.short:
        metric = results["metric"]["name"]
        values: dict[str, list[float]] = {"jax": [], "pytorch": []}
        for seed in SEEDS:
            flags = f"{row.command} --steps {row.short} --seed {seed}"
            jax_run = run(flags, OUT / "short" / f"{name}-jax-{seed}")
            file = OUT / "short" / f"{name}-pytorch-{seed}.json"
            torch_run = once(file, lambda flags=flags: train_in_pytorch(flags))
            values["jax"].append(jax_run["test"][metric])
            values["pytorch"].append(torch_run[metric])
        measured["short"] = {"steps": row.short, "values": values}
    return measured


def run(flags: str, workdir: Path) -> dict[str, Any]:
    """The results of `jaxmodels train`, which runs unless the folder has results already."""
    if not (workdir / "results.json").exists():
        began = time.monotonic()
        words = [
            sys.executable,
            "-m",
            "jaxmodels",
            "train",
            *shlex.split(flags),
            "--workdir",
            str(workdir),
            "--resume",
        ]
        print("$", " ".join(words), flush=True)
        subprocess.run(words, check=True, cwd=ROOT)
        (workdir / "wall.json").write_text(json.dumps(time.monotonic() - began))
    wall = json.loads((workdir / "wall.json").read_text())
    return json.loads((workdir / "results.json").read_text()) | {"wall_seconds": wall}


def once(file: Path, compute: Any) -> Any:
    """The content of a JSON file, computed and written first if there is no such file."""
    if not file.exists():
        value = compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    return json.loads(file.read_text())


def score(flags: str, workdir: Path) -> dict[str, float]:
    """The metrics of the exported model in PyTorch."""
    from jaxmodels.compare.torch_training import TorchTask

    task = experiment(flags).task()
    print(f"scoring {workdir / 'model'} in PyTorch", flush=True)
    return task.evaluate(TorchTask(task).load(workdir / "model").call, "test")


def train_in_pytorch(flags: str) -> dict[str, float]:
    """The test metrics of the same run in a plain PyTorch loop."""
    from jaxmodels.compare.torch_training import train_torch

    described = experiment(flags)
    task = described.task()
    print(f"in PyTorch: {flags}", flush=True)
    return task.evaluate(train_torch(described, task).call, "test")


def experiment(flags: str) -> Any:
    """The experiment that these arguments of `jaxmodels train` describe."""
    from jaxmodels.training.command import parse

    return parse([*shlex.split(flags), "--workdir", "unused"])


def environment() -> dict[str, Any]:
    """Date, cores and versions."""
    from importlib import metadata

    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "flax", "optax", "torch", "numpy")},
    }


def results_text(summary: dict[str, Any]) -> str:
    """Every metric of every run beside its baselines."""
    head = ["task", "metric", "result", "baselines, the best first", "in PyTorch", "parameters", "minutes"]
    table = Table([*head, "`jaxmodels train …`"], [])
    for row, described in zip(summary["rows"], ROWS, strict=True):
        for number, (key, name, form) in enumerate(described.metrics):
            value = row["test"][key]
            lower_is_better = "bits" in key
            found = {
                b: metrics[key] for b, metrics in row["baselines"].items() if metrics.get(key) is not None
            }
            ranked = sorted(found, key=found.__getitem__, reverse=not lower_is_better)
            better = [b for b in ranked if (found[b] <= value if lower_is_better else found[b] >= value)]
            result = form.format(value)
            last = [f"{row['parameters']:,}", f"{row['minutes']:.1f}", f"`{row['command']}`"]
            table.body.append(
                [
                    "" if number else row["label"],
                    name,
                    f"{result}, behind {len(better)} of {len(ranked)}" if better else f"**{result}**",
                    "; ".join(f"{b} {form.format(found[b])}" for b in ranked),
                    form.format(row["pytorch"][key]),
                    *([""] * len(last) if number else last),
                ]
            )
    env = summary["environment"]
    return (
        f"{table}\nAll numbers are from the test data. Bold: better than every baseline; otherwise the table "
        "says how many baselines are better. A few settings were chosen on the same test data; the "
        "table below has other seeds. "
        "In PyTorch: the exported weights, evaluated there. "
        f"Minutes: the whole command on {env['cores']} CPU cores, with compilation, evaluation and baselines. "
        f"{env['date']}, Python {env['python']}, jax {env['jax']}, flax {env['flax']}, torch {env['torch']}.\n"
    )


def seeds_text(summary: dict[str, Any]) -> str:
    """JAX and a plain PyTorch loop, three seeds each."""
    table = Table(["short form", "metric", "JAX", "PyTorch", "difference"], [])
    for row, described in zip(summary["rows"], ROWS, strict=True):
        if "short" not in row:
            continue
        _, name, form = described.metrics[0]
        values = row["short"]["values"]
        means = {framework: mean(numbers) for framework, numbers in values.items()}
        deviation = max(stdev(numbers) for numbers in values.values())
        difference = abs(means["jax"] - means["pytorch"]) / deviation if deviation else 0.0
        table.body.append(
            [
                f"`{row['command']} --steps {row['short']['steps']}`",
                name,
                *(f"{form.format(means[f])} ± {form.format(stdev(values[f]))}" for f in ("jax", "pytorch")),
                f"{difference:.1f} × the deviation",
            ]
        )
    return (
        f"{table}\nMean and standard deviation of three seeds each. The last column is the difference of the means "
        "divided by the larger deviation.\n"
    )


if __name__ == "__main__":
    tyro.cli(main)
