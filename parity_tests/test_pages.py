"""The pages whose code needs PyTorch run as they stand; the tables with the proof are the generated ones."""

import json
import runpy
from pathlib import Path

import jax
import pytest

from tests.docs import pages


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "page",
    [page for page in pages.PAGES if pages.needs_torch(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    with jax.enable_x64(False):
        pages.run(page, tmp_path)


def test_tables_are_generated() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "update_readme.py"))
    summary = json.loads((ROOT / "docs" / "compare.json").read_text())
    results = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())
    for path, text in tool["pages"](summary, results).items():
        assert text == path.read_text(encoding="utf-8"), (
            f"{path} is not current: python tools/update_readme.py --tables"
        )
    assert set(summary["models"]) == set(tool["MODELS"])
    assert all(entry[dtype]["ok"] for entry in summary["models"].values() for dtype in tool["DTYPES"])
