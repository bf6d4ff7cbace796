"""Fixtures of the tests of the readers."""

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """60 images; the red of each is its number."""
    (tmp_path / "images").mkdir()
    for index in range(60):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"images/{index}.png")
    return tmp_path
