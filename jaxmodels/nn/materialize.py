"""A way to tell XLA's CPU compiler that an array is to be computed once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def materialize(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` itself; on a CPU it and its gradient are written to memory where they arise.

    XLA's CPU compiler counts additions as free and repeats them in every consumer. Along a chain of residuals
    each late layer then reads the outputs of all earlier ones – in the backward pass of a deep Hourglass a
    single fused loop had 154 operands. `jax.lax.optimization_barrier` is taken out before fusion. A division
    is never repeated, so `x` is divided by a one that the compiler cannot see through, which changes no bit
    (numbers too small to be normal become 0, as in any arithmetic of XLA on a CPU). `benchmarks/LOG.md` has
    the measurements. Elsewhere than on CPUs it does nothing.
    """
    return jax.lax.platform_dependent(x, cpu=_divided_by_one, default=lambda x: x)


def _divided_by_one(x: Array) -> Array:
    # Made of an integer, the one has no gradient, and that of x is divided as well.
    return x if x.size == 0 else x / one_hidden_in(x).astype(x.dtype)


def one_hidden_in(x: Float[Array, "*shape"]) -> Int[Array, ""]:
    """1, computed from a bit of `x`, which must have an element: NaN will do."""
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bit = jax.lax.bitcast_convert_type(x[(0,) * x.ndim], unsigned) & 1
    return 1 + bit * (1 - bit)
