"""Activation functions as PyTorch defines them."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmodels.nn.dtypes import at_least_float32


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU, x·Φ(x) with the error function (https://arxiv.org/abs/1606.08415).

    Computed in at least float32, as in PyTorch: in bfloat16, 1 + erf(x) loses the tail of negative x.

    `jax.nn.gelu` defaults to the tanh approximation, whose error is up to 4.7e-4. Its exact form uses erfc,
    which is slower than erf on a CPU.
    """
    return _gelu(at_least_float32(x)).astype(x.dtype)


@jax.custom_jvp
def _gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative Φ(x) + x·φ(x) is written out, so that the backward pass needs only `x`."""
    return x * (0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5))))


@_gelu.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    # erf(-x), because XLA would merge erf(x) with that of the forward pass and keep the result in memory.
    cdf = 0.5 * (1.0 - jax.lax.erf(x * -math.sqrt(0.5)))
    density = jnp.exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi))
    return _gelu(x), (cdf + x * density) * t
