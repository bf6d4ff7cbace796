"""The floating-point type of a computation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


def promote(*arrays: Float[Array, "..."], dtype: DTypeLike | None) -> tuple[Float[Array, "..."], ...]:
    """All `arrays` in `dtype`, or, if that is None, in the type that they have in common."""
    # An explicit cast, also where a user asks JAX for "strict" promotion.
    with jax.numpy_dtype_promotion("standard"):
        common = jnp.result_type(*arrays) if dtype is None else dtype
    return tuple(array.astype(common) for array in arrays)


def at_least_float32(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """`x` in float32, or as it is where that is wider: for norms, softmax and losses."""
    return x.astype(float32_or_wider(x.dtype))


def float32_or_wider(dtype: DTypeLike) -> jnp.dtype:
    """`dtype`, or float32 where that is wider. (`jnp.promote_types` refuses to mix types under strict promotion.)"""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
