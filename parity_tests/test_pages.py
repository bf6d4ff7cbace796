"""The pages whose code needs PyTorch run as they stand; every model in the tables is equal."""

import json
from pathlib import Path

import jax
import pytest

from tests.docs import pages
from tools import comparison


ROOT = Path(__file__).parents[1]


@pytest.mark.usefixtures("unchecked_types")
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


def test_every_model_is_shown_and_equal() -> None:
    summary = json.loads(comparison.SUMMARY.read_text())
    assert set(summary["models"]) == set(comparison.MODELS)
    assert all(entry[dtype]["ok"] for entry in summary["models"].values() for dtype in comparison.DTYPES)
