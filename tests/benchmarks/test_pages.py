import shutil
from pathlib import Path

import pytest

from benchmarks import pages, report
from tests.benchmarks.sample_results import cell, curve, results


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both pages and the numbers behind them, to be written on."""
    (tmp_path / "results").mkdir()
    for file in pages.RESULTS.glob("*.json"):
        shutil.copy(file, tmp_path / "results")
    shutil.copy(pages.FULL, tmp_path / "FULL.md")
    shutil.copy(pages.SHORT, tmp_path / "SHORT.md")
    for name, path in (("RESULTS", "results"), ("FULL", "FULL.md"), ("SHORT", "SHORT.md")):
        monkeypatch.setattr(pages, name, tmp_path / path)
    return tmp_path


def test_the_pages_are_the_generated_ones(copies: Path) -> None:
    committed = [(copies / name).read_text() for name in ("FULL.md", "SHORT.md")]
    pages.write()
    assert [(copies / name).read_text() for name in ("FULL.md", "SHORT.md")] == committed, "run: --tables"


def test_what_was_measured_takes_the_place_of_the_promise(copies: Path) -> None:
    found = results(
        cell("eager", 10.0),
        cell("compile", 8.0),
        cell("jax", 8.0),
        cell("eager", 10.0, model="colt5"),
        cell("jax", 20.0, model="colt5"),
        curves=curve(),
    )
    report.write(found, copies)
    (copies / "results.json").replace(copies / "results" / "cpu.json")
    pages.write()
    short, full = (copies / "SHORT.md").read_text(), (copies / "FULL.md").read_text()
    assert "| `glom` | **0.80** / 1.00 ≈ |" in short
    assert "| `colt5` | 2.00 |" in short
    assert pages.NOTHING not in short
    assert "![ratios](results/cpu/ratios.png)" in full
    assert (copies / "results" / "cpu" / "curve-glom.png").exists()
    assert "Not measured: there was no GPU." in full


def test_a_page_without_marks_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"README.md must hold the marks <!-- cpu: begin --> and <!-- cpu: end -->"
    ):
        pages.replaced("no marks", "cpu", "text", Path("README.md"))
