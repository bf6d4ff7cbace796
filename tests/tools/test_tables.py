"""Generated tables and the markers between which they stand."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxmodels.benchmark.table import Table
from tools import comparison, memory, results, tpu
from tools.tables import pages, replace_between, update


def page(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_page_with_the_markers_gets_the_text(tmp_path: Path) -> None:
    readme = page(tmp_path, "README.md", "A\n<!-- x: begin -->\nold\n<!-- x: end -->\nB\n")
    guide = page(tmp_path, "docs/deep/guide.md", "<!-- x: begin -->\n<!-- x: end -->\n")
    other = page(tmp_path, "docs/other.md", "<!-- y: begin -->\n<!-- y: end -->\n")
    page(tmp_path, "docs/index.md", 'include README.md, start-after: "<!-- x: begin -->"\n')
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
    table = Table(["name", "value", "unit"], [["1 a|b", "1.0", "m"], ["2 c", "–", ""], ["3 d", "", "s"]])
    assert str(table) == (
        "| name | value | unit |\n| --- | --: | --- |\n| 1 a/b | 1.0 | m |\n| 2 c | – |  |\n| 3 d |  | s |\n"
    )


def test_pages_show_the_committed_numbers() -> None:
    summary = json.loads(results.SUMMARY.read_text())
    texts = {
        **comparison.texts(),
        "memory": memory.text(json.loads(memory.SUMMARY.read_text())),
        "results": results.results_text(summary),
        "seeds": results.seeds_text(summary),
        "tpu": tpu.text(tpu.results()),
    }
    for name, text in texts.items():
        found = pages(name)
        assert found, f"no page has the markers of {name}"
        for shown in found:
            assert replace_between(shown, name, text) == shown.read_text(), (
                f"run the tool of {name} with --tables"
            )


def analysis(*, state: float, rest: float, **changes: Any) -> dict[str, Any]:
    """Of four chips of 16 GiB; sizes in GiB."""
    memory = {"arguments": state * 2**30, "total": (state + rest) * 2**30, "capacity": 16 * 2**30}
    fields = {"memory": memory, "mesh": {"data": 4, "fsdp": 1}, "devices": 4, "batch_size": 64}
    return {**fields, "remat": True, "accumulate": 1, **changes}


def test_what_is_tried_next_on_a_tpu() -> None:
    assert tpu.changes(analysis(state=10, rest=10)) == {"mesh.fsdp": 4}
    assert tpu.changes(analysis(state=1, rest=40, remat=False)) == {"remat": 1}
    assert tpu.changes(analysis(state=1, rest=40)) == {"accumulate": 4}
    assert tpu.changes(analysis(state=1, rest=14, accumulate=4)) == {"accumulate": 8}
    assert tpu.changes(analysis(state=1, rest=400, batch_size=8)) == {}
