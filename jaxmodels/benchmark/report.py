"""Tables, results.md and an HTML page from results.json."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from matplotlib.figure import Figure

from jaxmodels import pages
from jaxmodels.atomic import atomic_write
from jaxmodels.benchmark import plots
from jaxmodels.benchmark.rows import LABELS, PYTORCH, Cell, Results, curves, point_label, rows
from jaxmodels.benchmark.table import Table


# Dense FLOP/s from the data sheet. Model FLOP utilisation (MFU) is the share of it.
DATA_SHEET = {"H200": {"bfloat16": 990e12, "float32": 67e12}}
EMPTY = "–"  # a cell without a number


def write_report(results: Results, folder: Path) -> None:
    """Writes the plots, results.md and report.html."""
    figures = plots.figures(rows(results), curves(results))
    images = plots.write(figures, folder)
    tables = [
        ("Time", main_table(results)),
        ("First calls, memory, arithmetic", detail_table(results)),
        *([("How time and memory grow", curve_table(results))] if results.get("curves") else []),
    ]
    text = f"# Benchmark\n\n{summary(results)}\n\n{measured_on(results)}\n\n"
    text += "\n".join(f"## {title}\n\n{table}" for title, table in tables)
    text += "\n" + "\n".join(f"![{image.stem}]({image.name})" for image in images) + "\n"
    with atomic_write(folder / "results.md") as path:
        path.write_text(text, encoding="utf-8")
    with atomic_write(folder / "report.html") as path:
        path.write_text(html(results, tables, figures), encoding="utf-8")


def html(results: Results, tables: Sequence[tuple[str, Table]], figures: Mapping[str, Figure]) -> str:
    """The tables and plots as one self-contained page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": _cell_html, "code": _code_html}
    page = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return page.render(
        stylesheet=pages.stylesheet(),
        summary=summary(results),
        plots=[pages.inline_svg(figure, name=name) for name, figure in figures.items()],
        tables=[(title, _without_empty_columns(_with_one_name_per_row(table))) for title, table in tables],
        measured_on=measured_on(results),
    )


def printed(results: Results) -> str:
    """What is printed at the end of a run: the table of times in Markdown."""
    return f"{main_table(results)}\n{summary(results)}\n"


def main_table(results: Results) -> Table:
    """One line per row: ratios, times with quartiles, noise, difference of the outputs."""
    found = rows(results)
    others = [name for name in PYTORCH if any(row.median(name) for row in found)]
    timed = [name for name in ("jax", *others) if any(row.median(name) for row in found)]
    head = ["model", "size", "mode", "precision"]
    head += [f"JAX / {LABELS[name]}" for name in others] + [f"{LABELS[name]}, ms" for name in timed]
    head += ["A / A", "difference"]
    body = []
    for row in found:
        a_against_a = row.a_against_a()
        errors = [cell["error"] for cell in row.cells.values() if cell.get("error") is not None]
        line = [*row.key]
        line += [str(row.ratio(name) or EMPTY) for name in others]
        line += [_time(row.cells.get(name)) for name in timed]
        line += [_number(a_against_a, "+.1%"), f"{max(errors):.0e}" if errors else EMPTY]
        body.append(line)
    return Table(head, body)


def detail_table(results: Results) -> Table:
    """One line per cell: first calls, memory, FLOP, and their share of what the machine can do."""
    peaks, floors = results.get("gemm_flop_per_s", {}), results.get("floors", {})
    data_sheet = next((v for k, v in DATA_SHEET.items() if k in results["environment"].get("device", "")), {})
    head = ["model", "size", "mode", "precision", "", "first call, s", "first call, cached, s"]
    head += ["peak memory, MB", "libraries, MB", "a call, MB", "GFLOP", "GFLOP/s", "of GEMM peak"]
    head += (["MFU"] if data_sheet else []) + (["floor, ms", "× floor"] if floors else [])
    body = []
    for row in rows(results):
        model, _, mode, precision = row.key
        for name, cell in row.cells.items():
            line = [
                *row.key,
                LABELS[name],
                _number(cell.get("first_call_s"), ".2f"),
                _number(cell.get("warm_first_call_s"), ".2f"),
                _number(cell.get("peak_mb"), ",.0f"),
                _number(cell.get("libraries_mb"), ",.0f"),
                _number(_call_mb(cell), ",.0f"),
                _number(cell.get("flop"), ",.1f", 1e-9),
                _number(cell.get("flop_per_s"), ",.0f", 1e-9),
                _number(_quotient(cell.get("flop_per_s"), peaks.get(precision)), ".0%"),
            ]
            if data_sheet:
                line.append(_number(_quotient(cell.get("flop_per_s"), data_sheet.get(precision)), ".0%"))
            if floors:
                floor = floors.get(model, {}).get(mode) if precision == "bfloat16" else None
                line += [_number(floor, ".1f"), _number(_quotient(cell["median_ms"], floor), ".1f")]
            body.append(line)
    return Table(head, body)


def curve_table(results: Results) -> Table:
    """One line per point of every scaling curve."""
    head = ["model", "", "at", "JAX / eager", "JAX, ms", "eager, ms", "JAX, MB", "eager, MB"]
    body = []
    for model, points in curves(results).items():
        for row in points:
            first = next(iter(row.cells.values()))
            pair = [row.cells.get(name) for name in ("jax", "eager")]
            line = [model, first["curve"], point_label(first["at"]), str(row.ratio("eager") or EMPTY)]
            line += [_time(cell) for cell in pair]
            line += [_number((cell or {}).get("peak_mb"), ",.0f") for cell in pair]
            body.append(line)
    return Table(head, body)


def summary(results: Results) -> str:
    """In how many rows JAX is ahead or behind, and which implementation is missing or fails."""
    found = rows(results)
    sentences = []
    for name in PYTORCH:
        verdicts = [ratio.verdict for row in found if (ratio := row.ratio(name)) is not None]
        if verdicts:
            ahead, behind = verdicts.count("ahead"), verdicts.count("behind")
            sentences.append(
                f"Against {LABELS[name]} JAX is ahead in {ahead} of {len(verdicts)} rows, behind in {behind}, "
                f"and within the noise in {len(verdicts) - ahead - behind}."
            )
    for name, reason in results.get("absent", {}).items():
        if reason:
            sentences.append(f"{LABELS[name]} is missing: {reason}.")
    failures = Counter(
        (LABELS[name], cell["failure"])
        for row in found
        for name, cell in row.cells.items()
        if cell.get("failure")
    )
    sentences += [f"{name} fails in {count} rows: {reason}." for (name, reason), count in failures.items()]
    for reason, names in _unfinished(results).items():
        sentences.append(f"{reason[:1].upper()}{reason[1:]}: {', '.join(names)}.")
    return " ".join(sentences) or "No two implementations were timed in the same row."


def _unfinished(results: Results) -> dict[str, list[str]]:
    """The rows without a result, by the first line of the reason."""
    found: dict[str, list[str]] = {}
    for name, reason in results.get("unfinished", {}).items():
        short = reason if reason == "not reached" else "no result, see the output of the run"
        found.setdefault(short, []).append(name)
    return found


def measured_on(results: Results) -> str:
    """Date, machine, versions, commit and command on one line."""
    text = _run_of(results["environment"])
    earlier = results.get("earlier")
    return f"{text}. First calls, memory and curves are those of {_run_of(earlier)}" if earlier else text


def _run_of(env: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {env[name]}" for name in ("jax", "flax", "torch") if name in env)
    busy = env.get("busy_cores") or 0
    others = f" ({busy} of {env.get('cores', '?')} cores busy with other processes)" if busy > 0.3 else ""
    return (
        f"{env.get('date', 'no date')}, {env.get('device', 'unknown device')}, {env.get('threads', '?')} threads"
        f"{others}, {env.get('system', '')}, Python {env.get('python', '?')}, {versions}, "
        f"commit {env.get('commit') or 'unknown'}: `{env.get('command', '?')}`"
    )


def _time(cell: Cell | None) -> str:
    if not cell or not cell["median_ms"]:
        return EMPTY
    digits = 2 if cell["median_ms"] < 100 else 1 if cell["median_ms"] < 1000 else 0
    q1, median, q3 = (f"{cell[key]:.{digits}f}" for key in ("q1_ms", "median_ms", "q3_ms"))
    return f"{median} ({q1}–{q3})"


def _number(value: float | None, form: str, factor: float = 1) -> str:
    return EMPTY if value is None else format(value * factor, form)


def _quotient(value: float | None, divisor: float | None) -> float | None:
    return value / divisor if value and divisor else None


def _call_mb(cell: Cell) -> float | None:
    """Peak memory of a call above what stays between calls: weights, optimiser, libraries, compiled programs."""
    peak, rest = cell.get("peak_mb"), cell.get("rest_mb")
    return None if peak is None or rest is None else peak - rest


def _with_one_name_per_row(table: Table) -> Table:
    """Joins model, size, mode and precision in one cell of several lines, so that the table fits a page."""
    keys = ["model", "size", "mode", "precision"]
    if table.head[:4] != keys:
        return table
    body = [[" ".join(line[:4]), *line[4:]] for line in table.body]
    return Table([", ".join(keys), *table.head[4:]], body)


def _without_empty_columns(table: Table) -> Table:
    """Leaves out what was not measured, such as memory in a quick run."""
    kept = [i for i in range(len(table.head)) if any(line[i] != EMPTY for line in table.body)]
    return Table([table.head[i] for i in kept], [[line[i] for i in kept] for line in table.body])


def _code_html(text: str) -> markupsafe.Markup:
    """Markdown's code as HTML."""
    return markupsafe.Markup(re.sub(r"`(.*?)`", r"<code>\1</code>", str(markupsafe.escape(text))))


def _cell_html(cell: str) -> markupsafe.Markup:
    """Markdown's bold as HTML, without line breaks inside parentheses or at ±."""
    text = str(markupsafe.escape(cell)).replace(" ± ", "\u00a0±\u00a0")
    text = re.sub(r"\*\*(.*?)\*\*", r"<b>\1</b>", text)
    return markupsafe.Markup(re.sub(r"\(.*?\)", r'<span class="nowrap">\g<0></span>', text))
