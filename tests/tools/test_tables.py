from pathlib import Path

import pytest

from tools.tables import Table, pages, update


def page(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_page_with_the_markers_gets_the_text(tmp_path: Path) -> None:
    readme = page(tmp_path, "README.md", "A\n<!-- x: begin -->\nold\n<!-- x: end -->\nB\n")
    guide = page(tmp_path, "docs/deep/guide.md", "<!-- x: begin -->\n<!-- x: end -->\n")
    other = page(tmp_path, "docs/other.md", "<!-- y: begin -->\n<!-- y: end -->\n")
    assert update("x", "new\n", tmp_path) == [readme, guide]
    assert readme.read_text() == "A\n<!-- x: begin -->\nnew\n<!-- x: end -->\nB\n"
    assert guide.read_text() == "<!-- x: begin -->\nnew\n<!-- x: end -->\n"
    assert "new" not in other.read_text()


def test_the_text_may_depend_on_the_folder_of_the_page(tmp_path: Path) -> None:
    guide = page(tmp_path, "docs/guide.md", "<!-- x: begin -->\n<!-- x: end -->\n")
    update("x", lambda folder: f"{folder.name}\n", tmp_path)
    assert "begin -->\ndocs\n" in guide.read_text()


def test_markers_that_are_nowhere(tmp_path: Path) -> None:
    page(tmp_path, "README.md", "no markers\n")
    assert pages("x", tmp_path) == []
    with pytest.raises(ValueError, match=r"no page holds <!-- x: begin --> and <!-- x: end -->"):
        update("x", "", tmp_path)


def test_a_second_marker_that_is_missing(tmp_path: Path) -> None:
    readme = page(tmp_path, "README.md", "<!-- x: begin -->\nold\n")
    with pytest.raises(ValueError, match=r"README.md must hold <!-- x: begin --> and <!-- x: end -->"):
        update("x", "new\n", tmp_path)
    assert readme.read_text() == "<!-- x: begin -->\nold\n"


def test_columns_of_numbers_are_on_the_right() -> None:
    table = Table(["name", "value"], [["a|b", "1.0"], ["c", "–"]])
    assert str(table) == "| name | value |\n| --- | --: |\n| a/b | 1.0 |\n| c | – |\n"
