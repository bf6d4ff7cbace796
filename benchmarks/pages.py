"""Writes the generated parts of the pages from benchmarks/results: `python -m benchmarks --tables`."""

import os
from functools import partial
from pathlib import Path

from benchmarks import roofline
from jaxmodels.benchmark import plots, report
from jaxmodels.benchmark.rows import Results, Row, curves, read, rows
from jaxmodels.benchmark.table import Table
from jaxmodels.models import MODEL_NAMES
from tools import tables


RESULTS = tables.ROOT / "benchmarks" / "results"
TORCHAX = "cpu-torchax.json"  # a run of torchax, eager PyTorch and JAX
NO_CPU_RESULTS = "Not measured yet: `make benchmarks` writes this table.\n"
NO_GPU_RESULTS = "Not measured: there was no GPU.\n"


def write(root: Path = tables.ROOT) -> list[Path]:
    """Writes all tables and plots of benchmarks/results into the pages that have markers for them.

    Returns:
      The pages.

    Raises:
      ValueError, OSError: a results file is damaged, or no page has the markers of a table.
    """
    results = root / "benchmarks" / "results"
    cpu = read(results / "cpu.json") if (results / "cpu.json").exists() else None
    torchax = read(results / TORCHAX) if (results / TORCHAX).exists() else None
    if cpu and torchax:
        cpu = {**cpu, "absent": {}}  # it has a table of its own
    others = {"cpu.json", TORCHAX, roofline.SUMMARY.name}
    gpus = {path.stem: read(path) for path in sorted(results.glob("*.json")) if path.name not in others}
    short_text = NO_CPU_RESULTS if cpu is None else short(cpu)
    written = tables.update("benchmarks", "\n".join([short_text, *map(short, gpus.values())]), root)
    text = NO_CPU_RESULTS if cpu is None else partial(full, cpu, results / "cpu")
    written += tables.update("cpu", text, root)
    text = partial(_full_of_gpus, gpus, results) if gpus else NO_GPU_RESULTS
    written += tables.update("gpu", text, root)
    if torchax:
        parts = (
            report.summary(torchax),
            report.measured_on(torchax),
            str(report.main_table(torchax)).strip(),
        )
        written += tables.update("torchax", "\n\n".join(parts) + "\n", root)
    written += tables.update("roofline", str(roofline.table(roofline.read())), root)
    return written


def _full_of_gpus(gpus: dict[str, Results], folder: Path, page_folder: Path) -> str:
    """`full` for every GPU, in the order of their names."""
    return "\n".join(full(found, folder / name, page_folder) for name, found in gpus.items())


def full(results: Results, plots_folder: Path, page_folder: Path) -> str:
    """All tables and plots of one machine.

    Args:
      results: what was measured on that machine.
      plots_folder: where the plots are written.
      page_folder: the folder of the page, from which its links start.
    """
    images = {
        image.stem: f"![{image.stem}]({os.path.relpath(image, page_folder)})"
        for image in plots.write(plots.figures(rows(results), curves(results)), plots_folder)
    }
    parts = [report.summary(results), report.measured_on(results)]
    parts += [images.pop("ratios")] if "ratios" in images else []
    parts += [str(report.main_table(results)), str(report.detail_table(results))]
    if results.get("curves"):
        parts += [*images.values(), str(report.curve_table(results))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def short(results: Results) -> str:
    """One line per model: JAX / eager PyTorch and, where it was timed, JAX / torch.compile."""
    by_key = {row.key: row for row in rows(results)}
    columns = list(dict.fromkeys((size, mode, precision) for _, size, mode, precision in by_key))
    several_precisions = len({precision for *_, precision in columns}) > 1
    head = ["model"]
    head += [" ".join((mode, size, *[precision] * several_precisions)) for size, mode, precision in columns]
    body = []
    for model in MODEL_NAMES:
        found = [by_key.get((model, *column)) for column in columns]
        if any(found):
            body.append([f"`{model}`", *(_ratios(row) for row in found)])
    return (
        f"{Table(head, body)}\nTime of JAX divided by that of PyTorch, eager / `torch.compile`. Below 1 and bold: "
        f"JAX is faster. ≈: within the noise. {report.summary(results)} {report.measured_on(results)}.\n"
    )


def _ratios(row: Row | None) -> str:
    ratios = [ratio for name in ("eager", "compile") if row and (ratio := row.ratio(name))]
    forms = {"ahead": "**{:.2f}**", "behind": "{:.2f}", "level": "{:.2f} ≈"}
    return " / ".join(forms[ratio.verdict].format(ratio.value) for ratio in ratios) or report.EMPTY
