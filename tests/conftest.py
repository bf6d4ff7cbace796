"""These tests run without PyTorch: an accidental import of it anywhere below jaxmodels fails them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.quick_compilation import FLAGS


# Read when jax first looks for its devices: eight simulated ones. Tests that do not ask for them run on the first.
# They share few cores, so one may wait long for the others; by default XLA ends the process after 40 seconds.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        FLAGS,
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        "--xla_cpu_collective_timeout_seconds=600",
    ]
)

import jax
import pytest


# Not shared with another suite or another Python: what a process reads while another writes it, is cut off.
PROGRAMS = (
    Path(__file__).parents[1] / ".jax_cache" / f"tests-{sys.version_info.major}.{sys.version_info.minor}"
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS)  # for the processes that a test starts
jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# Compiling is what these tests spend their time on; parity_tests run every model at full optimisation as well.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def full_optimisation() -> Iterator[None]:
    """For tests of the optimised program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
