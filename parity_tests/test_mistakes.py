"""The classic mistakes of docs/compare.md: each is found and diagnosed as the page says, and its cure is equal."""

import runpy
from pathlib import Path
from typing import Any

import pytest


ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "porting_mistakes.py"))
PAGE = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("mistake", TOOL["MISTAKES"], ids=lambda mistake: mistake.make.__name__)
def test_mistake_is_found_and_its_cure_is_equal(mistake: Any) -> None:
    share, place, diagnosis = TOOL["report"](mistake, wrong=True)
    assert place
    assert diagnosis
    assert (share <= 1) == mistake.in_gradient
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {mistake.name} |"))
    assert f"| {place} | {diagnosis} |" in row, "run: python tools/porting_mistakes.py"

    share, *found = TOOL["report"](mistake, wrong=False)
    assert (share <= 1, found) == (True, ["", ""])


def test_every_row_is_a_mistake() -> None:
    rows = PAGE.partition("<!-- mistakes: begin -->\n")[2].partition("<!-- mistakes: end -->")[0]
    assert len(rows.splitlines()) == len(TOOL["MISTAKES"]) + 2
