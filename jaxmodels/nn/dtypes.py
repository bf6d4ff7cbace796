"""The floating-point type of a computation."""

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


def promote(*arrays: Float[Array, "..."], dtype: DTypeLike | None) -> tuple[Float[Array, "..."], ...]:
    """All `arrays` in `dtype`, or, if that is None, in the type that they have in common."""
    common = jnp.result_type(*arrays) if dtype is None else dtype
    return tuple(array.astype(common) for array in arrays)


def at_least_float32(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """`x` in float32, or as it is where that is wider: for norms, softmax and losses."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
