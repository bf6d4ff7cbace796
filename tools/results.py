"""Trains every task on two CPU cores and writes what came out into docs/train.md; `make results` runs it.

    python tools/results.py            # runs what is missing under out/results, then writes the tables
    python tools/results.py --tables   # only writes the tables, from docs/results.json

Every preset is run once as it is, and in a short form with three seeds in JAX and three in a plain PyTorch loop
over torch_reference: same configuration, same batches, own initial weights. The exported weights of every long
run are scored again in PyTorch. Interrupted, it goes on where it was.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple


ROOT = Path(__file__).parents[1]
OUT = ROOT / "out" / "results"
SUMMARY = ROOT / "docs" / "results.json"
PAGE = ROOT / "docs" / "train.md"
SEEDS = range(3)


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      label: the task in words.
      command: what follows `jaxmodels train`, without the folder.
      metrics: shown, main one first: (key, name, format).
      baselines: which of them is set against which metric.
      short: steps of the short form, or None for a row that has none.
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="only write the tables, from docs/results.json")
    if not parser.parse_args().tables:
        rows = [measure(row) for row in ROWS]
        SUMMARY.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    summary = json.loads(SUMMARY.read_text())
    readme = PAGE.read_text()
    for mark, text in (("results", results_table(summary)), ("seeds", seeds_table(summary))):
        readme = with_table(readme, mark, text)
    PAGE.write_text(readme)


def measure(row: Row) -> dict[str, Any]:
    """Everything that the tables say about one row."""
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
        sides: dict[str, list[float]] = {"jax": [], "pytorch": []}
        for seed in SEEDS:
            flags = f"{row.command} --steps {row.short} --seed {seed}"
            jax_run = run(flags, OUT / "short" / f"{name}-jax-{seed}")
            file = OUT / "short" / f"{name}-pytorch-{seed}.json"
            torch_run = once(file, lambda flags=flags: train_in_pytorch(flags))
            sides["jax"].append(jax_run["test"][metric])
            sides["pytorch"].append(torch_run[metric])
        measured["short"] = {"steps": row.short, "values": sides}
    return measured


def run(flags: str, workdir: Path) -> dict[str, Any]:
    """The results of `jaxmodels train`, run now unless they are there."""
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
    """What is in the file, computed now unless it is there."""
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
    """The run in a plain PyTorch loop: its test metrics."""
    from jaxmodels.compare.torch_training import train_torch

    described = experiment(flags)
    task = described.task()
    print(f"in PyTorch: {flags}", flush=True)
    return task.evaluate(train_torch(described, task).call, "test")


def experiment(flags: str) -> Any:
    from jaxmodels.training.command import parse

    return replace(parse([*shlex.split(flags), "--workdir", "unused"]))


def environment() -> dict[str, Any]:
    from importlib import metadata

    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "flax", "optax", "torch", "numpy")},
    }


def results_table(summary: dict[str, Any]) -> str:
    """Every run beside its baselines, metric by metric."""
    lines = [
        "| task | metric | result | baselines, the best first | in PyTorch | parameters | minutes "
        "| `jaxmodels train …` |",
        "| --- | --- | --: | --- | --: | --: | --: | --- |",
    ]
    for row, shown in zip(summary["rows"], ROWS, strict=True):
        for number, (key, name, form) in enumerate(shown.metrics):
            value = row["test"][key]
            lower = "bits" in key
            found = {b: m[key] for b, m in row["baselines"].items() if m.get(key) is not None}
            order = sorted(found, key=found.__getitem__, reverse=not lower)
            better = [b for b in order if (found[b] <= value if lower else found[b] >= value)]
            result = form.format(value)
            first = [row["label"]] if number == 0 else [""]
            last = (
                [f"{row['parameters']:,}", f"{row['minutes']:.1f}", f"`{row['command']}`"]
                if number == 0
                else [""] * 3
            )
            cells = [
                *first,
                name,
                f"{result}, behind {len(better)} of {len(order)}" if better else f"**{result}**",
                "; ".join(f"{b} {form.format(found[b])}" for b in order),
                form.format(row["pytorch"][key]),
                *last,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    env = summary["environment"]
    lines += [
        "",
        "Test data. Bold: better than every baseline; otherwise behind so many of them. Settings were tried out on "
        "the same test data, few of them; the table below has other seeds. In PyTorch: the exported weights, "
        f"scored there. Minutes: the whole command on {env['cores']} CPU cores, with compilation, evaluation and "
        "baselines. "
        f"{env['date']}, Python {env['python']}, jax {env['jax']}, flax {env['flax']}, torch {env['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def seeds_table(summary: dict[str, Any]) -> str:
    """JAX and a plain PyTorch loop, three seeds each."""
    lines = [
        "| short form | metric | JAX | PyTorch | difference |",
        "| --- | --- | --: | --: | --: |",
    ]
    for row, shown in zip(summary["rows"], ROWS, strict=True):
        if "short" not in row:
            continue
        _, name, form = shown.metrics[0]
        values = row["short"]["values"]
        means = {side: mean(numbers) for side, numbers in values.items()}
        spread = max(stdev(numbers) for numbers in values.values())
        cells = [f"`{row['command']} --steps {row['short']['steps']}`", name]
        cells += [
            f"{form.format(means[side])} ± {form.format(stdev(values[side]))}" for side in ("jax", "pytorch")
        ]
        share = abs(means["jax"] - means["pytorch"]) / spread if spread else 0.0
        cells.append(f"{share:.1f} × the spread")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Mean and standard deviation of three seeds each; the difference of the means in units of the larger "
        "deviation.",
    ]
    return "\n".join(lines) + "\n"


def with_table(page: str, mark: str, table: str) -> str:
    """The page with what stands between the marks replaced."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"{PAGE} has no marks {begin.strip()} and {end.strip()}")
    return before + begin + table + end + after


if __name__ == "__main__":
    main()
