"""Writes the table of README.md and the comparison table of docs/compare.md; no number in them is typed.

    jaxmodels compare --dtype float64 --output out/compare-float64
    jaxmodels compare --dtype float32 --output out/compare-float32
    python tools/update_readme.py            # both tables, from fresh reports
    python tools/update_readme.py --tables   # both tables, from the committed numbers

The numbers of the comparison are kept in docs/compare.json, beside what they were measured with. The speed comes
from benchmarks/results/cpu.json. A test renders both tables and compares them with the pages. `make tables` runs
the first three commands.
"""

import json
import sys
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
SUMMARY = ROOT / "docs" / "compare.json"
SPEED = ROOT / "benchmarks" / "results" / "cpu.json"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "compare.md"
DTYPES = ("float64", "float32")
QUANTITIES = ("outputs", "gradients", "weights")
# model -> (class, paper, package)
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


def comparison_table(summary: dict[str, Any]) -> str:
    """Every quantity of every model with its share of the tolerance, as Markdown."""
    head = ["model", "equal", "parameters", "layers"]
    head += [f"{name}, {dtype}" for dtype in DTYPES for name in QUANTITIES]
    lines = [f"| {' | '.join(head)} |", "| --- | --- |" + " --: |" * (len(head) - 2)]
    for name, entry in summary["models"].items():
        equal = "yes" if all(entry[dtype]["ok"] for dtype in DTYPES) else "**NO**"
        cells = [f"`{name}`", equal, f"{entry['parameters']:,}", str(entry["float64"]["layers"])]
        for dtype in DTYPES:
            for quantity in QUANTITIES:
                check = entry[dtype][quantity]
                share = min(check["error"] / check["tolerance"], 9.99)
                cells.append(f"{check['error']:.1e} ({share:.0%})")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Each cell is the largest difference, relative to the largest value of its tensor. "
        "In parentheses is its share of the tolerance: 100% would be the limit. "
        f"The tolerance is {summary['factor']} × the measured distance between PyTorch in float32 and in float64. "
        "Weights are compared after three AdamW steps. " + measured_with(summary["environment"]),
    ]
    return "\n".join(lines) + "\n"


def proof_table(summary: dict[str, Any], results: dict[str, Any]) -> str:
    """One line per model: what it is, how far it is from PyTorch, and its time against torch.compile."""
    lines = [
        "| model | paper | package | difference, float64 | float32 | forward pass | training step |",
        "| --- | --- | --- | --: | --: | --: | --: |",
    ]
    for model, (name, paper, package) in MODELS.items():
        errors = [
            max(summary["models"][model][dtype][quantity]["error"] for quantity in ("outputs", "gradients"))
            for dtype in DTYPES
        ]
        times = [f"{speed(results, model, mode):.2f}" for mode in ("forward", "train")]
        cells = [f"`{name}`", paper, package, *(f"{error:.0e}" for error in errors), *times]
        lines.append(f"| {' | '.join(cells)} |")
    device = results["environment"]
    lines += [
        "",
        "Difference: the largest of all outputs and gradients from PyTorch's, relative to the largest value of its "
        "tensor, on shared weights and real inputs. "
        "Forward pass and training step: JAX's time divided by that of `torch.compile`; below 1, JAX is faster. "
        f"Timed in float32 on {device['threads']} CPU threads. " + measured_with(summary["environment"]),
    ]
    return "\n".join(lines) + "\n"


def speed(results: dict[str, Any], model: str, mode: str) -> float:
    """JAX's median time over torch.compile's at the medium size in float32."""
    times = {
        cell["implementation"]: cell["median_ms"]
        for cell in results["cells"]
        if (cell["model"], cell["mode"], cell["size"], cell["precision"])
        == (model, mode, "medium", "float32")
    }
    return times["jax"] / times["compile"]


def measured_with(environment: dict[str, Any]) -> str:
    """When, and with which versions."""
    versions = ", ".join(f"{name} {environment[name]}" for name in ("jax", "flax", "torch"))
    return f"Measured on {environment['date']} with Python {environment['python']}, {versions}."


def replaced(page: str, mark: str, text: str) -> str:
    """The page with what stands between the marks replaced."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"the page must hold the marks {begin.strip()} and {end.strip()}, each on its own line")
    return before + begin + text + end + after


def pages(summary: dict[str, Any], results: dict[str, Any]) -> dict[Path, str]:
    """Both pages with their tables."""
    return {
        README: replaced(README.read_text(), "proof", proof_table(summary, results)),
        PAGE: replaced(PAGE.read_text(), "compare", comparison_table(summary)),
    }


def main() -> None:
    if "--tables" not in sys.argv[1:]:
        reports = {}
        for dtype in DTYPES:
            path = ROOT / "out" / f"compare-{dtype}" / "report.json"
            if not path.is_file():
                sys.exit(f"{path} is missing; run: jaxmodels compare --dtype {dtype} --output {path.parent}")
            reports[dtype] = json.loads(path.read_text())
        SUMMARY.write_text(json.dumps(summarise(reports), indent=1) + "\n")
    for path, text in pages(json.loads(SUMMARY.read_text()), json.loads(SPEED.read_text())).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
