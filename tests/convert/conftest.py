"""Places and failures that the tests of weight files share."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def full_disk(path: Path, arrays: object) -> None:
    """Takes the place of a function that writes a file."""
    path.write_bytes(b"the first half")
    raise OSError(28, "No space left on device", str(path))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root reads and writes everything, so it steps back for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


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
