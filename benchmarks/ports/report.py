"""The verdicts as a table of the documentation."""

from collections.abc import Mapping
from typing import Any

from benchmarks.ports.catalogue import PORTS
from jaxmodels.compare.explanation import number


HEADER = (
    "| package | port and original | compared | verdict | output error |\n| --- | --- | --- | --- | --: |"
)


def table(results: Mapping[str, Any]) -> str:
    """All comparisons as Markdown, in the catalogue's order, and below them every difference and the versions."""
    lines, differences = [HEADER], []
    for port in PORTS:
        for name, found in results.items():
            if found["file"] != port.file:
                continue
            what = name.removeprefix(port.file).strip(", ")
            mode = {"eval": "evaluation mode", "train": "training mode"}[found["mode"]]
            ratio = found["output_error"] / found["output_tolerance"]
            share = f"{ratio:.0%}" if ratio <= 1 else f"{ratio:,.0f} ×"
            cells = [
                f"{port.package} {found['package_version']}",
                f"`{port.ours}`, `{port.theirs}`",
                mode if what in ("", *port.modes) else f"{mode}, {what}",
                found["verdict"],
                f"{number(found['output_error'])} ({share})",
            ]
            lines.append(f"| {' | '.join(cells)} |")
            if found["verdict"] != "equal":
                differences.append(
                    f"* {cells[1]}, {cells[2]}: {_difference(found, port.remarks.get(what or found['mode']))}"
                )
    environments = sorted({_sentence(found) for found in results.values()})
    closing = (
        "Errors are relative to the largest value. In parentheses is the share of the tolerance, or by how many times "
        "it is exceeded."
    )
    listed = "\n".join(differences)
    return "\n".join(lines) + f"\n\n{listed}\n\n{closing} {' '.join(environments)}\n"


def _difference(found: Mapping[str, Any], remark: str | None) -> str:
    """Where the two first differ, which mistake explains it, and whether it matters."""
    place = f"{found['difference']} (error {number(found['error'])})" if found["layer"] else found["reason"]
    parts = [place, found["diagnosis"] or "no known mistake explains it", remark]
    return " ".join(f"{part[0].upper()}{part[1:].removesuffix('.')}." for part in parts if part)


def _sentence(found: Mapping[str, Any]) -> str:
    libraries = [f"{name} {number}" for name, number in sorted(found["versions"].items()) if name != "python"]
    return f"Measured on {found['day']} with Python {found['versions']['python']}, {', '.join(libraries)}."
