"""What both suites share: how garbage is collected, and what one test file leaves to the next."""

import gc
from collections.abc import Iterator

import pytest


def pytest_collection_finish() -> None:
    """Spares the garbage collector what was imported, and calls it less often.

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
