"""Positions that are computed, not learned. The PyTorch twin is `torch_reference/positions.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from jaxmodels.nn.buffer import Buffer
from jaxmodels.nn.dtypes import at_least_float32, float32_or_wider


def sincos_2d(
    height: int, width: int, dim: int, *, dtype: DTypeLike
) -> Float[Array, "{height} {width} {dim}"]:
    """The two-dimensional sin-cos table of "Better plain ViT baselines" (https://arxiv.org/abs/2205.01580).

    Entry (i, j) is [sin jω, cos jω, sin iω, cos iω] – column first, row second – with
    ω_m = 10000^(-m / (dim/4 - 1)). The table is computed in at least float32 and cast to `dtype` at the end.
    `dim` must be a multiple of 4 and at least 8.
    """
    compute_dtype = float32_or_wider(dtype)
    quarter = dim // 4
    omega = 1.0 / (10000.0 ** (jnp.arange(quarter, dtype=compute_dtype) / (quarter - 1)))[None, None]  # 1 1 m
    rows = jnp.arange(height, dtype=compute_dtype)[:, None, None] * omega  # height 1 m
    columns = jnp.arange(width, dtype=compute_dtype)[None, :, None] * omega  # 1 width m
    parts = jnp.sin(columns), jnp.cos(columns), jnp.sin(rows), jnp.cos(rows)
    parts = [jnp.broadcast_to(part, (height, width, quarter)) for part in parts]
    return jnp.concatenate(parts, axis=-1).astype(dtype)


class RotaryEmbedding(nnx.Module):
    """Angles of rotary position embedding (https://arxiv.org/abs/2104.09864), at least in float32."""

    def __init__(self, dim_head: int, *, param_dtype: DTypeLike) -> None:
        # A stored constant: powers in float32 differ in their last bit between libraries, and a loaded model
        # must rotate by the frequencies that it was trained with.
        dtype = float32_or_wider(param_dtype)
        self.inv_freq = Buffer(jnp.asarray(inverse_frequencies(dim_head), dtype))

    def __call__(self, n: int) -> Float[Array, "{n} k"]:
        inv_freq = at_least_float32(jax.lax.stop_gradient(self.inv_freq[...]))
        # In float32: the package counts in the model's type, and bfloat16 cannot tell 256 from 257.
        positions = jnp.arange(n, dtype=inv_freq.dtype)
        angles = jnp.outer(positions, inv_freq)
        return jnp.concatenate([angles, angles], axis=-1)


def inverse_frequencies(dim_head: int) -> Float[np.ndarray, " half"]:
    """10000^(-2i / dim_head), in float32 as PyTorch computes it."""
    exponents = np.arange(0, dim_head, 2, dtype=np.float32) / np.float32(dim_head)
    return np.float32(1.0) / np.float32(10000.0) ** exponents


def rotate(x: Float[Array, "*b n k"], angles: Float[Array, "n k"]) -> Float[Array, "*b n k"]:
    """Rotates the pairs (x[i], x[i + k/2]) by the angles."""
    first, second = jnp.split(x, 2, axis=-1)
    quarter_turn = jnp.concatenate([-second, first], axis=-1)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    return x * jnp.broadcast_to(cos, x.shape) + quarter_turn * jnp.broadcast_to(sin, x.shape)
