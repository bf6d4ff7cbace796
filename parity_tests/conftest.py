"""Precision and compilation of the parity tests, and the fixture with the three models of a row."""

import os
from pathlib import Path

from tests.quick_compilation import FLAGS


# Read when jax first looks for its devices.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
# Two suites share the cores, so waiting threads of PyTorch must not spin. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import numpy as np
import pytest
import torch

from parity_tests.harness import Triple, build_triple


# Not shared with the other suite: what a process reads while another writes it, is cut off.
PROGRAMS = Path(__file__).parents[1] / ".jax_cache" / "parity"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS)  # for the processes that a test starts
jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# Compiling is what these tests spend their time on; each model also has a test at full optimisation.
jax.config.update("jax_disable_most_optimizations", True)
torch.use_deterministic_algorithms(True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> str:
    """float64 shows that the algorithm is the same, float32 that the precision of most users keeps it so."""
    return request.param


@pytest.fixture
def triple(case, dtype: str) -> Triple:
    return build_triple(case, np.dtype(dtype))


@pytest.fixture
def without_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of places and verdicts: the search for the mistake behind a difference takes seconds."""
    monkeypatch.setattr("jaxmodels.compare.engine.diagnose", lambda *_: None)
