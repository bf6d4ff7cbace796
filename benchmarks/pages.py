"""Writes the tables of both pages on benchmarks from the results: `python -m benchmarks --tables`."""

import json
from pathlib import Path

from benchmarks import plots, remat, report, roofline
from benchmarks.machine import ROOT
from benchmarks.problem import MODELS
from jaxmodels.atomic import atomic_write


RESULTS = ROOT / "benchmarks" / "results"
FULL, SHORT = ROOT / "benchmarks" / "README.md", ROOT / "docs" / "benchmarks.md"
NOTHING = "Not measured yet: `make benchmarks` writes this table."


def write() -> None:
    """Both pages and their pictures, from cpu.json, gpu.json, remat.json and roofline.json.

    Raises:
      ValueError, OSError: a results file is damaged, or a page has lost its marks.
    """
    texts = {FULL: FULL.read_text(encoding="utf-8"), SHORT: SHORT.read_text(encoding="utf-8")}
    for name in ("cpu", "gpu"):
        file = RESULTS / f"{name}.json"
        results = report.read(file) if file.exists() else None
        texts[FULL] = replaced(texts[FULL], name, full(results, name), FULL)
        if name == "cpu":
            texts[SHORT] = replaced(texts[SHORT], "benchmarks", short(results), SHORT)
    counts = json.loads(roofline.SUMMARY.read_text(encoding="utf-8"))
    texts[FULL] = replaced(texts[FULL], "roofline", report.markdown(*roofline.table(counts)), FULL)
    spared = json.loads(remat.SUMMARY.read_text(encoding="utf-8"))
    texts[FULL] = replaced(texts[FULL], "remat", remat.text(spared), FULL)
    for page, text in texts.items():
        with atomic_write(page) as path:
            path.write_text(text, encoding="utf-8")


def floors() -> dict[str, dict[str, float]]:
    """Of `roofline.floors`, from the file."""
    return roofline.floors(json.loads(roofline.SUMMARY.read_text(encoding="utf-8")))


def full(results: report.Results | None, name: str) -> str:
    """All tables and pictures of one machine."""
    if results is None:
        return f"{NOTHING}\n" if name == "cpu" else "Not measured: there was no GPU.\n"
    pictures = plots.write(report.rows(results), report.curves(results), RESULTS / name)
    shown = {picture.stem: f"![{picture.stem}](results/{name}/{picture.name})" for picture in pictures}
    parts = [report.summary(results), report.measured_on(results)]
    parts += [shown.pop("ratios")] if "ratios" in shown else []
    parts += [report.markdown(*report.main_table(results)), report.markdown(*report.detail_table(results))]
    if results.get("curves"):
        parts += [*shown.values(), report.markdown(*report.curve_table(results))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def short(results: report.Results | None) -> str:
    """One line per model: JAX / eager and, where it was timed, JAX / torch.compile."""
    if results is None:
        return f"{NOTHING}\n"
    rows = {row.key: row for row in report.rows(results)}
    columns = sorted({key[1:] for key in rows}, key=list({key[1:]: 0 for key in rows}).index)
    several = len({precision for *_, precision in columns}) > 1
    head = ["model", *(" ".join((mode, size, *[precision] * several)) for size, mode, precision in columns)]
    body = []
    for model in MODELS:
        found = [rows.get((model, *column)) for column in columns]
        if any(found):
            body.append([f"`{model}`", *(_pair(row) for row in found)])
    return (
        f"{report.markdown(head, body)}\nTime of JAX over that of PyTorch, eager / `torch.compile`; below 1 and bold: "
        f"JAX is faster; ≈: inside the noise. {report.summary(results)} {report.measured_on(results)}.\n"
    )


def replaced(page: str, mark: str, text: str, path: Path) -> str:
    """The page with what stands between the marks replaced."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(
            f"{path} must hold the marks {begin.strip()} and {end.strip()}, each on its own line"
        )
    return before + begin + text + end + after


def _pair(row: report.Row | None) -> str:
    ratios = [ratio for name in ("eager", "compile") if row and (ratio := row.ratio(name))]
    forms = {"ahead": "**{:.2f}**", "behind": "{:.2f}", "level": "{:.2f} ≈"}
    return " / ".join(forms[ratio.verdict].format(ratio.value) for ratio in ratios) or report.NONE
