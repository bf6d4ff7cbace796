"""Writes the comparison table of README.md from the reports of `jaxmodels compare`; nothing in it is typed.

    jaxmodels compare --dtype float64 --output out/compare-float64
    jaxmodels compare --dtype float32 --output out/compare-float32
    python tools/update_readme.py

The numbers that the table shows are kept in docs/compare.json, beside what they were measured with; a test
renders the table from there and compares it with the README. `make tables` runs all three commands.
"""

import json
import sys
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
SUMMARY = ROOT / "docs" / "compare.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- compare: begin -->\n", "<!-- compare: end -->\n"
DTYPES = ("float64", "float32")
QUANTITIES = ("outputs", "gradients", "weights")


def summarise(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the table from one report per dtype."""
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


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    head = ["model", "parameters", "layers"]
    head += [f"{name}, {dtype}" for dtype in DTYPES for name in QUANTITIES] + ["equal"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " --: |" * (len(head) - 1)]
    for name, entry in summary["models"].items():
        cells = [f"`{name}`", f"{entry['parameters']:,}", str(entry["float64"]["layers"])]
        for dtype in DTYPES:
            for quantity in QUANTITIES:
                check = entry[dtype][quantity]
                share = min(check["error"] / check["tolerance"], 9.99)
                cells.append(f"{check['error']:.1e} ({share:.0%})")
        cells.append("yes" if all(entry[dtype]["ok"] for dtype in DTYPES) else "**NO**")
        lines.append(f"| {' | '.join(cells)} |")
    env = summary["environment"]
    lines += [
        "",
        "Largest error relative to the largest value of its tensor and, in parentheses, its share of the tolerance, "
        f"which is {summary['factor']} × the measured distance between PyTorch in float32 and in float64. "
        f"Weights: after three AdamW steps. {env['date']}, {env['device']}, Python {env['python']}, "
        f"jax {env['jax']}, flax {env['flax']}, torch {env['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def with_table(readme: str, summary: dict[str, Any]) -> str:
    """The README with the table between its marks replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(summary) + END + after


def main() -> None:
    reports = {}
    for dtype in DTYPES:
        path = ROOT / "out" / f"compare-{dtype}" / "report.json"
        if not path.is_file():
            sys.exit(f"{path} is missing; run: jaxmodels compare --dtype {dtype} --output {path.parent}")
        reports[dtype] = json.loads(path.read_text())
    summary = summarise(reports)
    SUMMARY.write_text(json.dumps(summary, indent=1) + "\n")
    README.write_text(with_table(README.read_text(), summary))


if __name__ == "__main__":
    main()
