"""The figures of the architectures are those that the script draws."""

import runpy

from tests.docs.pages import ROOT


def test_architecture_figures_are_current() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "architecture_figures.py"))
    for name, draw in tool["FIGURES"].items():
        file = ROOT / "docs" / "images" / f"{name}-architecture.svg"
        assert file.read_text(encoding="utf-8") == draw().svg(), "run: python tools/architecture_figures.py"


def test_images_are_small_and_shown() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    files = list((ROOT / "docs" / "images").iterdir())
    assert len(files) >= 10
    for file in files:
        assert file.stat().st_size <= 100_000, file
        assert f"images/{file.name}" in pages, f"no page shows {file}"
