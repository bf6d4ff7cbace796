"""Full matmul precision, and the proof that it took effect.

On a GPU both frameworks may compute float32 products in TF32, with a thousandth of the digits; a comparison
then measures the hardware, not the port.

Either framework is imported where it is asked: captures observe one side in a process that may lack the other.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np


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


# TF32 keeps 10 bits of each factor: errors around 3e-4. Float32 sums of 256 terms stay below 2e-6.
LARGEST_FLOAT32_ERROR = 2e-6
# Bfloat16 keeps 7 bits: errors from 2e-3. Where TF32 cuts digits off instead of rounding them, it reaches 8e-4.
LARGEST_TF32_ERROR = 1.3e-3

Product = Literal["matmul", "convolution"]


@contextmanager
def full_precision() -> Generator[Evidence]:
    """Highest matmul precision on both sides while the block runs; yields the evidence.

    Raises:
      ReducedPrecisionError: a product still came out with fewer digits than float32.
    """
    with full_precision_in_torch(), full_precision_in_jax():
        evidence = observe()
        if not evidence.ok:
            raise ReducedPrecisionError(
                "float32 matrix products are not computed in float32 "
                f"(JAX off by {evidence.jax_error:.1e}, PyTorch by {evidence.torch_error:.1e}); "
                "unset NVIDIA_TF32_OVERRIDE and XLA_FLAGS and try again"
            )
        yield evidence


@contextmanager
def full_precision_in_torch() -> Generator[None]:
    """Highest precision of products and convolutions in PyTorch while the block runs."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # it has a switch of its own, which is on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def full_precision_in_jax() -> Generator[None]:
    """Highest precision of products and convolutions in JAX while the block runs."""
    import jax

    with jax.default_matmul_precision("highest"):
        yield


def observe() -> Evidence:
    """Multiplies matrices in both frameworks under the settings in force."""
    import torch

    requested, jax_error = observe_jax()
    torch_error = observe_torch(torch.device("cpu"))
    return Evidence(requested, jax_error, torch_error, max(jax_error, torch_error) < LARGEST_FLOAT32_ERROR)


def observe_jax(kind: Product = "matmul") -> tuple[str, float]:
    """The precision that JAX writes into its program, and the error of the product.

    Args:
      kind: of a matrix product, or of a convolution with one pixel that computes the same.
    """
    a, b = _factors()
    lowered = _product_in_jax(kind).lower(a, b)
    requested = "HIGHEST" if "HIGHEST" in lowered.as_text() else "DEFAULT"
    return requested, _product_error(np.asarray(lowered.compile()(a, b)))


@cache
def _product_in_jax(kind: Product) -> Any:
    """The product of two matrices under jax.jit, which compiles it once for each setting of the precision."""
    import jax
    import jax.numpy as jnp

    def multiply(a, b):
        if kind == "matmul":
            return jnp.matmul(a, b)
        return jax.lax.conv_general_dilated(
            a[:, None, None], b[None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[:, 0, 0]

    return jax.jit(multiply)


def observe_torch(device: Any, kind: Product = "matmul") -> float:
    """The error of the same products in PyTorch on this device."""
    import torch

    a, b = (torch.from_numpy(factor).to(device) for factor in _factors())
    with torch.no_grad():
        if kind == "matmul":
            return _product_error((a @ b).cpu().numpy())
        product = torch.nn.functional.conv2d(a[:, :, None, None], b.T[:, :, None, None])
        return _product_error(product[:, :, 0, 0].cpu().numpy())


def _factors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)


def _product_error(product: np.ndarray) -> float:
    a, b = _factors().astype(np.float64)
    exact = a @ b
    return float(np.abs(product - exact).max() / np.abs(exact).max())
