"""Fixtures of the tests of weight files and hub folders."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxmodels as jm
from tests.convert import small_models


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`import torch` fails, also where it is installed."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "jaxmodels.convert.torch_io", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved Glom."""
    jm.save_pretrained(small_models.filled("Glom"), tmp_path / "glom")
    return tmp_path / "glom"
