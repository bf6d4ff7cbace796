"""Where the tests compute. REHEARSE_ON_CPU=1 runs them without a GPU, except for cuDNN's kernel."""

import os
from collections.abc import Iterator

import jax
import pytest


REHEARSAL = os.environ.get("REHEARSE_ON_CPU") == "1"


@pytest.fixture(scope="session")
def device() -> jax.Device:
    """The first GPU; in a rehearsal the CPU."""
    if REHEARSAL:
        return jax.devices("cpu")[0]
    try:
        found = jax.devices("gpu")[0]
        jax.devices("cpu")  # computes what is expected
    except RuntimeError as error:
        pytest.skip(
            f"these tests need a GPU and the CPU in JAX, or REHEARSE_ON_CPU=1 to run without: {error}"
        )
    return found


@pytest.fixture(autouse=True, scope="session")
def _on_device(device: jax.Device) -> Iterator[None]:
    jax.config.update("jax_default_device", device)
    yield
    jax.config.update("jax_default_device", None)
