"""Position tables that are computed, not learned."""

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


def sincos_2d(
    height: int, width: int, dim: int, *, dtype: DTypeLike
) -> Float[Array, "{height} {width} {dim}"]:
    """The two-dimensional sin-cos table of "Better plain ViT baselines" (https://arxiv.org/abs/2205.01580).

    Entry (i, j) is [sin jω, cos jω, sin iω, cos iω] – column first, row second – with
    ω_m = 10000^(-m / (dim/4 - 1)). The table is computed in at least float32 and cast to `dtype` at the end.
    `dim` must be a multiple of 4 and at least 8.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    quarter = dim // 4
    omega = 1.0 / (10000.0 ** (jnp.arange(quarter, dtype=wide) / (quarter - 1)))  # m
    rows = jnp.arange(height, dtype=wide)[:, None, None] * omega  # height 1 m
    columns = jnp.arange(width, dtype=wide)[None, :, None] * omega  # 1 width m
    parts = jnp.sin(columns), jnp.cos(columns), jnp.sin(rows), jnp.cos(rows)
    parts = [jnp.broadcast_to(part, (height, width, quarter)) for part in parts]
    return jnp.concatenate(parts, axis=-1).astype(dtype)
