"""Writes the tables that show how far JAX is from PyTorch, in its numbers and in its time.

    jaxmodels compare --dtype float64 --output out/compare-float64
    jaxmodels compare --dtype float32 --output out/compare-float32
    python -m tools.comparison            # both tables, from these reports
    python -m tools.comparison --tables   # both tables, from the committed numbers

The numbers of the reports are kept in docs/compare.json, with the environment of the measurement. The times come from
benchmarks/results/cpu.json. `make tables` runs the first three commands.
"""

import json
import sys
from typing import Any

import tyro

from jaxmodels.benchmark import rows
from jaxmodels.benchmark.table import Table
from tools.tables import ROOT, update


SUMMARY = ROOT / "docs" / "compare.json"
SPEED = ROOT / "benchmarks" / "results" / "cpu.json"
DTYPES = ("float64", "float32")
QUANTITIES = ("outputs", "gradients", "weights")
# For each model its class, paper and package.
MODELS = {
    "glom": ("Glom", "[GLOM](https://arxiv.org/abs/2102.12627)", "glom-pytorch"),
    "hourglass": (
        "HourglassTransformerLM",
        "[Hourglass](https://arxiv.org/abs/2110.13711)",
        "hourglass-transformer-pytorch",
    ),
    "colt5": ("ConditionalRoutedViT", "[CoLT5](https://arxiv.org/abs/2303.09752)", "CoLT5-attention"),
    "mammut": ("MaMMUT", "[MaMMUT](https://arxiv.org/abs/2303.16839)", "MaMMUT-pytorch"),
    "scalable_vit": ("ScalableViT", "[ScalableViT](https://arxiv.org/abs/2203.10790)", "vit-pytorch"),
}


def summarise(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the tables from one report per dtype."""
    models: dict[str, Any] = {}
    for dtype, report in reports.items():
        for model in report["models"]:
            entry = models.setdefault(model["model"], {"parameters": model["parameters"]})
            checks = {
                name: max(model[name], key=lambda c: c["error"] / c["tolerance"]) for name in QUANTITIES
            }
            entry[dtype] = {
                "ok": model["ok"],
                "layers": len({check["name"] for check in model["layers"]}),
                **{k: {"error": c["error"], "tolerance": c["tolerance"]} for k, c in checks.items()},
            }
    environment = reports[DTYPES[0]]["environment"] | {"command": "make tables"}
    return {"environment": environment, "factor": reports[DTYPES[0]]["factor"], "models": models}


def comparison_text(summary: dict[str, Any]) -> str:
    """Every quantity of every model with its share of the tolerance."""
    quantities = [f"{name}, {dtype}" for dtype in DTYPES for name in QUANTITIES]
    table = Table(["model", "equal", "parameters", "layers", *quantities], [])
    for name, entry in summary["models"].items():
        equal = "yes" if all(entry[dtype]["ok"] for dtype in DTYPES) else "**NO**"
        line = [f"`{name}`", equal, f"{entry['parameters']:,}", str(entry["float64"]["layers"])]
        for dtype in DTYPES:
            for quantity in QUANTITIES:
                check = entry[dtype][quantity]
                share = min(check["error"] / check["tolerance"], 9.99)
                line.append(f"{check['error']:.1e} ({share:.0%})")
        table.body.append(line)
    return (
        f"{table}\nEach cell is the largest difference, relative to the largest value of its tensor. "
        "In parentheses is its share of the tolerance: 100% would be the limit. "
        f"The tolerance is {summary['factor']} × the measured distance between PyTorch in float32 and in float64. "
        f"Weights are compared after three AdamW steps. {measured_with(summary['environment'])}\n"
    )


def proof_text(summary: dict[str, Any], results: rows.Results) -> str:
    """One line per model: what it is, how far it is from PyTorch, and its time against torch.compile."""
    times = {row.key: row.ratio("compile") for row in rows.rows(results)}
    head = ["model", "paper", "package", "difference, float64", "float32", "forward pass", "training step"]
    table = Table(head, [])
    for model, (name, paper, package) in MODELS.items():
        errors = [
            max(summary["models"][model][dtype][quantity]["error"] for quantity in ("outputs", "gradients"))
            for dtype in DTYPES
        ]
        ratios = [times[model, "medium", mode, "float32"] for mode in ("forward", "train")]
        table.body.append(
            [
                f"`{name}`",
                paper,
                package,
                *(f"{error:.0e}" for error in errors),
                *("–" if ratio is None else f"{ratio.value:.2f}" for ratio in ratios),
            ]
        )
    return (
        f"{table}\nDifference: the largest of all outputs and gradients from PyTorch's, relative to the largest value "
        "of its tensor, on shared weights and real inputs. "
        "Forward pass and training step: JAX's time divided by that of `torch.compile`; below 1, JAX is faster. "
        f"Timed in float32 on {results['environment']['threads']} CPU threads. "
        f"{measured_with(summary['environment'])}\n"
    )


def measured_with(environment: dict[str, Any]) -> str:
    """When, and with which versions."""
    versions = ", ".join(f"{name} {environment[name]}" for name in ("jax", "flax", "torch"))
    return f"Measured on {environment['date']} with Python {environment['python']}, {versions}."


def texts() -> dict[str, str]:
    """The generated text of each pair of markers, from the committed numbers."""
    summary = json.loads(SUMMARY.read_text())
    return {"compare": comparison_text(summary), "proof": proof_text(summary, rows.read(SPEED))}


def main(*, tables: bool = False) -> None:
    """Write the tables of the comparison.

    Args:
      tables: read no reports; only write the tables, from the committed numbers.
    """
    if not tables:
        reports = {}
        for dtype in DTYPES:
            path = ROOT / "out" / f"compare-{dtype}" / "report.json"
            if not path.is_file():
                sys.exit(f"{path} is missing; run: jaxmodels compare --dtype {dtype} --output {path.parent}")
            reports[dtype] = json.loads(path.read_text())
        SUMMARY.write_text(json.dumps(summarise(reports), indent=1) + "\n")
    for name, text in texts().items():
        update(name, text)


if __name__ == "__main__":
    tyro.cli(main)
