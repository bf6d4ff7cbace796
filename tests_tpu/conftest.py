"""Where the compiler runs, and what of the last result is kept in the repository."""

import json
import os
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


os.environ["JAX_PLATFORMS"] = "cpu"  # read when jax is imported

import pytest


RESULT = Path(__file__).with_name("result.json")
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What the tests found, by test and chip; written to `RESULT` at the end if no test failed."""
    found: dict[str, Any] = {}
    yield found
    if found and not request.session.testsfailed:
        kept = json.loads(RESULT.read_text())["programs"] if RESULT.exists() else {}
        versions = {name: version(name) for name in PACKAGES}
        result = {"date": f"{date.today()}", "versions": versions, "programs": {**kept, **found}}
        RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
