"""Full matmul precision, and the proof that it took effect.

On a GPU both frameworks may compute float32 products in TF32, with a thousandth of the digits; a comparison
then measures the hardware, not the port.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch


class ReducedPrecisionError(RuntimeError):
    """The machine or its settings compute float32 products with fewer digits."""


class Evidence(NamedTuple):
    """What was observed of a float32 product of 256×256 matrices.

    Attributes:
      jax_requested: the precision written into the compiled program.
      jax_error, torch_error: error relative to the float64 product; about 1e-7 for float32, 1e-3 for TF32.
      ok: both errors are float32's.
    """

    jax_requested: str
    jax_error: float
    torch_error: float
    ok: bool


@contextmanager
def full_precision() -> Generator[Evidence]:
    """Highest matmul precision on both sides while the block runs; yields the evidence.

    Raises:
      ReducedPrecisionError: a product still came out with fewer digits than float32.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with jax.default_matmul_precision("highest"):
            evidence = observe()
            if not evidence.ok:
                raise ReducedPrecisionError(
                    "float32 matrix products are not computed in float32 "
                    f"(JAX off by {evidence.jax_error:.1e}, PyTorch by {evidence.torch_error:.1e}); "
                    "unset NVIDIA_TF32_OVERRIDE and XLA_FLAGS and try again"
                )
            yield evidence
    finally:
        torch.set_float32_matmul_precision(before)


def observe() -> Evidence:
    """Multiplies matrices in both frameworks under the settings in force."""
    a, b = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    lowered = jax.jit(jnp.matmul).lower(a, b)
    text = lowered.as_text()
    requested = "HIGHEST" if "precision = [HIGHEST, HIGHEST]" in text else "DEFAULT"
    ours = np.asarray(lowered.compile()(a, b), np.float64)
    theirs = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy().astype(np.float64)
    jax_error, torch_error = (float(np.abs(x - exact).max() / np.abs(exact).max()) for x in (ours, theirs))
    # TF32 keeps 10 bits of each factor: errors around 3e-4. Float32 sums of 256 terms stay below 2e-6.
    return Evidence(requested, jax_error, torch_error, max(jax_error, torch_error) < 2e-6)
