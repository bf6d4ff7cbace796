"""The tables and plots of the benchmarks on the pages are those of benchmarks/results."""

import shutil
from pathlib import Path

import pytest

from benchmarks import pages
from jaxmodels.benchmark import report, rows
from tests.benchmarks.sample_results import cell, curve, results
from tools.tables import PAGES, ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the pages and of the numbers behind them."""
    files = [path for pattern in (*PAGES, "benchmarks/results/*.json") for path in ROOT.glob(pattern)]
    for file in files:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    return tmp_path


def test_the_pages_are_the_generated_ones(repository: Path) -> None:
    written = pages.write(repository)
    assert written
    for page in written:
        committed = (ROOT / page.relative_to(repository)).read_text()
        assert page.read_text() == committed, "run: python -m benchmarks --tables"


def test_results_take_the_place_of_what_stood_there(repository: Path) -> None:
    found = results(
        cell("eager", 10.0),
        cell("compile", 8.0),
        cell("jax", 8.0),
        cell("eager", 10.0, model="colt5"),
        cell("jax", 20.0, model="colt5"),
        curves=curve(),
    )
    rows.write(found, repository)
    (repository / "results.json").replace(repository / "benchmarks" / "results" / "cpu.json")
    pages.write(repository)
    full = (repository / "benchmarks" / "README.md").read_text()
    assert "![ratios](results/cpu/ratios.svg)" in full
    assert (repository / "benchmarks" / "results" / "cpu" / "curve-glom.svg").exists()
    assert pages.NO_GPU_RESULTS in full
    assert pages.NO_CPU_RESULTS not in full


def test_a_gpu_has_its_tables_when_it_was_measured(repository: Path) -> None:
    found = results(cell("eager", 10.0, size="gpu"), cell("jax", 8.0, size="gpu"))
    found["environment"]["device"] = "NVIDIA H200"
    rows.keep(found, repository / "benchmarks" / "results" / "h200.json")
    pages.write(repository)
    full = (repository / "benchmarks" / "README.md").read_text()
    assert pages.NO_GPU_RESULTS not in full
    assert "![ratios](results/h200/ratios.svg)" in full
    short = (repository / "docs" / "benchmarks.md").read_text()
    assert short.index("train medium") < short.index("forward gpu") < short.index("NVIDIA H200")


def test_torchax_has_a_table_of_its_own_run(repository: Path) -> None:
    found = results(cell("eager", 10.0), cell("torchax", 20.0), cell("jax", 8.0))
    rows.keep(found, repository / "benchmarks" / "results" / pages.TORCHAX)
    pages.write(repository)
    full = (repository / "benchmarks" / "README.md").read_text()
    table = full.partition("<!-- torchax: begin -->")[2].partition("<!-- torchax: end -->")[0]
    assert "Against torchax JAX is ahead in 1 of 1 rows" in table
    assert "**0.40" in table
    assert "torchax is missing" not in full


def test_results_keep_first_calls_and_memory_of_an_earlier_run(tmp_path: Path) -> None:
    earlier = results(cell("jax", 9.0, peak_mb=100.0), curves=curve())
    earlier["environment"]["commit"] = "before"
    rows.keep(earlier, tmp_path / "cpu.json")
    quick = cell("jax", 8.0, peak_mb=None, first_call_s=0.1), cell("torchax", 8.0, peak_mb=None)
    rows.keep(results(*quick), tmp_path / "cpu.json")
    found = rows.read(tmp_path / "cpu.json")
    assert [(c["median_ms"], c["first_call_s"], c["peak_mb"]) for c in found["cells"]] == [
        (8.0, 1.5, 100.0),
        (8.0, 1.5, None),
    ]
    assert len(found["curves"]) == 6
    text = report.measured_on(found)
    assert (
        text.index("commit abc")
        < text.index("First calls, memory and curves are those of")
        < text.index("before")
    )
    rows.keep(results(cell("jax", 7.0)), tmp_path / "cpu.json")  # a run that measures them itself
    assert "earlier" not in rows.read(tmp_path / "cpu.json")


def test_the_short_table_has_one_line_per_model() -> None:
    text = pages.short(
        results(
            cell("eager", 10.0),
            cell("compile", 8.0),
            cell("jax", 8.0),
            cell("eager", 10.0, model="colt5"),
            cell("jax", 20.0, model="colt5"),
        )
    )
    assert "| `glom` | **0.80** / 1.00 ≈ |" in text
    assert "| `colt5` | 2.00 |" in text


def test_links_start_at_the_folder_of_the_page(tmp_path: Path) -> None:
    found = results(cell("eager", 10.0), cell("jax", 8.0))
    text = pages.full(found, tmp_path / "benchmarks" / "results" / "cpu", tmp_path / "docs")
    assert "![ratios](../benchmarks/results/cpu/ratios.svg)" in text


def test_no_cell_computes_faster_than_the_machine() -> None:
    """More than the fastest matrix product, beyond the noise of the time, would be a wrong count of FLOP."""
    files = set((ROOT / "benchmarks" / "results").glob("*.json")) - {
        ROOT / "benchmarks/results/roofline.json"
    }
    assert files
    for file in files:
        found = rows.read(file)
        for row in rows.rows(found):
            for name, measured in row.cells.items():
                if measured.get("flop_per_s"):
                    share = measured["flop_per_s"] / found["gemm_flop_per_s"][row.key[3]]
                    assert share <= 1 + row.noise(name), f"{file.name}: {row.name} {name}: {share:.0%}"
