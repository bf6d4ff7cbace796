"""For both suites: fewer garbage collections, and no compiled programs left over from the last test file."""

import gc
from collections.abc import Iterator

import pytest


def pytest_collection_finish() -> None:
    """Makes the garbage collector skip what was imported, and run less often.

    Tracing makes so many objects that by default a tenth of the main thread's time is spent in the collector.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Drops the compiled programs of a test file, which are of no use to the next one and fill the memory."""
    yield
    import jax  # here, since each suite sets variables that jax reads

    jax.clear_caches()
    gc.collect()
