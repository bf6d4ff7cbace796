"""For both suites: calls are checked, garbage is collected less often, and no compiled programs are left over."""

import functools
import gc
from collections.abc import Iterator

import jax
import jaxtyping
import numpy as np
import pytest
from jax._src.interpreters import mlir
from jax._src.interpreters.partial_eval import DynamicJaxprTracer
from jax._src.lax import lax

from tests.type_checks import check_calls


check_calls("jaxmodels", "torch_reference")
# Flax's counters of random numbers ask traced values for their sharding. JAX answers with an error, whose text searches
# the whole program for where the value comes from: most of the time in which a large model is made under tracing.
DynamicJaxprTracer._origin_msg = lambda _: ""  # ty: ignore[invalid-assignment]
# From 0.10.2 on jnp.asarray compiles a program for every shape of a NumPy array. A copy needs none.
if hasattr(lax, "stage_p"):
    stage = lax.stage_p.impl
    lax.stage_p.def_impl(lambda x: jax.device_put(x.copy()) if isinstance(x, np.ndarray) else stage(x))
# A context of MLIR for each program would be a quarter of the time that a single operation takes to compile.
shared_context = mlir.make_ir_context = functools.cache(mlir.make_ir_context)


def pytest_collection_finish() -> None:
    """Makes the garbage collector skip what was imported, and run less often.

    Tracing makes so many objects that by default a tenth of the main thread's time is spent in the collector.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """For tests of what users meet who pass a wrong type or shape: outside the tests nothing checks their calls."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """Types of numbers and ranks of arrays meet only where the code says so.

    For layers and models. Optimisers (optax's Adam) and users' own models in `compare` promote as they like.
    """
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Drops the compiled programs of a test file, which are of no use to the next one and fill the memory."""
    yield
    jax.clear_caches()
    shared_context.cache_clear()  # it keeps the constants of all programs
    gc.collect()
