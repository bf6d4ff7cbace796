"""The verdicts as a table of the documentation."""

from collections.abc import Mapping
from typing import Any

from benchmarks.ports.catalogue import PORTS
from jaxmodels.compare.explanation import number


HEADER = (
    "| package | port and original | compared | verdict | output error | first difference | diagnosis "
    "| does it matter? |\n"
    "| --- | --- | --- | --- | --: | --- | --- | --- |"
)


def table(results: Mapping[str, Any]) -> str:
    """All comparisons as Markdown, in the catalogue's order, and below them the versions."""
    lines = [HEADER]
    for port in PORTS:
        for name, found in results.items():
            if found["file"] != port.file:
                continue
            what = name.removeprefix(port.file).strip(", ")
            mode = {"eval": "evaluation mode", "train": "training mode"}[found["mode"]]
            place = (
                f"`{found['layer']}`: {found['difference']} ({number(found['error'])})"
                if found["layer"]
                else found["reason"] or "–"
            )
            ratio = found["output_error"] / found["output_tolerance"]
            share = f"{ratio:.0%}" if ratio <= 1 else f"{ratio:,.0f} ×"
            cells = [
                f"{port.package} {found['package_version']}",
                f"`{port.ours}`, `{port.theirs}`",
                mode if what in ("", *port.modes) else f"{mode}, {what}",
                found["verdict"],
                f"{number(found['output_error'])} ({share})",
                place,
                found["diagnosis"] or "–",
                "–" if found["verdict"] == "equal" else port.remarks.get(what or found["mode"], "–"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    environments = sorted({_sentence(found) for found in results.values()})
    closing = (
        "Errors are relative to the largest value. In parentheses is the share of the tolerance, or by how many times "
        "it is exceeded."
    )
    return "\n".join(lines) + f"\n\n{closing} {' '.join(environments)}\n"


def _sentence(found: Mapping[str, Any]) -> str:
    libraries = [f"{name} {number}" for name, number in sorted(found["versions"].items()) if name != "python"]
    return f"Measured on {found['day']} with Python {found['versions']['python']}, {', '.join(libraries)}."
