"""Scaled dot-product attention."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxmodels.checks import require_choice
from jaxmodels.nn.dtypes import at_least_float32
from jaxmodels.nn.fused_attention import (
    TILE,
    cudnn_accepts,
    cudnn_attention,
    cudnn_runs_here,
    pallas_accepts,
    pallas_attention,
    past_keys,
)


# Causal attention takes this many queries at a time: it skips most masked keys, and a block fits a CPU's cache.
BLOCK = 128

Implementation = Literal["auto", "xla", "cudnn", "pallas"]

# "auto" leaves attention with fewer queries or keys to XLA: what a kernel saves grows with queries × keys, and it
# pads them. cuDNN took 1.5 ms for one query and two keys. Not measured further: the numbers are those of its tiles.
SMALLEST_FUSED = {"cudnn": 64, "pallas": TILE}


class AttentionModule(nnx.Module):
    """A module with attention; `nnx.view(model, attention="xla")` makes it do without fused kernels."""

    attention: Implementation = "auto"

    def set_view(self, attention: Implementation | None = None) -> None:
        """Used by `nnx.view`.

        Args:
          attention: "auto", "xla", "cudnn" or "pallas"; see `attend`.
        """
        if attention is not None:
            require_choice("attention", attention, get_args(Implementation))
            self.attention = attention


def attend(
    q: Float[Array, "b h i k"],
    k: Float[Array, "b #h j k"],
    v: Float[Array, "b #h j e"],
    *,
    mask: Bool[Array, "#b #h #i j"] | None = None,
    causal: bool = False,
    dropout: Callable[[Array], Array] | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "b h i e"]:
    """Softmax attention with the scale k^-½. The softmax is computed in at least float32.

    `implementation` says how:

    * "xla" writes the formula out. On a CPU, causal attention goes block by block.
    * "cudnn" uses the fused kernel of NVIDIA GPUs (Ampere or newer) for bfloat16 and float16, if keys and values
      have at most 128 features per head.
    * "pallas" uses a fused kernel of TPUs for bfloat16 and float32, unless the mask differs between queries or
      heads, or is causal with fewer queries than keys. On several devices it needs `jax.set_mesh`.
    * "auto" uses the kernel of the platform for large enough attention.

    What a kernel cannot do, dropout for one, is computed as with "xla". A fused kernel never stores the logits.

    Args:
      q, k, v: queries, keys and values. If `k` and `v` have one head, all query heads share it.
      mask: True where a query may attend to a key. A query whose keys are all masked gets the mean of the
        values, as with PyTorch's `masked_fill(-finfo.max)`, not NaN.
      causal: no query attends to later keys; the last query belongs to the last key. A mask that differs
        between queries must then leave every query a key.
      dropout: applied to the attention weights.
      implementation: "auto", "xla", "cudnn" or "pallas".

    Raises:
      ValueError: "pallas" on a GPU.
    """
    platform = platform_of(q)
    if implementation == "pallas" and platform == "gpu":
        raise ValueError(
            "implementation must be 'auto', 'xla' or 'cudnn' on a GPU: the Pallas kernel is for TPUs; "
            "got implementation='pallas'"
        )
    kernel = None if dropout is not None else _kernel(q, k, v, mask, causal, implementation, platform)
    if kernel is not None:
        return kernel(q, k, v, mask=mask, causal=causal)
    if not causal:
        return _attend(q, k, v, mask, dropout)
    i, j = q.shape[2], k.shape[2]
    in_blocks = platform == "cpu" and implementation in ("auto", "xla")
    # A mask of keys alone may leave a query without keys: it gets the mean of all values, not those of its block.
    if not in_blocks or (mask is not None and mask.shape[2] == 1):
        keep = past_keys(i, j)
        return _attend(q, k, v, keep if mask is None else mask & keep, dropout)
    blocks = []
    for start in range(0, max(i, 1), BLOCK):
        stop = min(start + BLOCK, i)
        keys = j - i + stop
        keep = jnp.tril(jnp.ones((1, 1, stop - start, keys), bool), j - i + start)
        if mask is not None:
            keep &= mask[:, :, start:stop, :keys]
        blocks.append(_attend(q[:, :, start:stop], k[:, :, :keys], v[:, :, :keys], keep, dropout))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=2)


def platform_of(x: Array) -> str:
    """Where the computation on `x` runs, as far as it is known while it is traced: "cpu", "gpu" or "tpu".

    That is the platform of the mesh in the context (`jax.set_mesh`), else of the default device.

    Not `jax.lax.platform_dependent`, which knows it for certain: it traces every choice, and cuDNN's cannot be
    traced without a GPU; the backward pass would keep what each of them needs; and without `jit` it would compile
    what now runs operation by operation, which changes the last digits on a CPU.
    """
    if isinstance(x, jax.Array) and not isinstance(x, Tracer):
        return next(iter(x.devices())).platform
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return next((name for name in ("cpu", "tpu") if device.device_kind.lower().startswith(name)), "gpu")
    default = jax.config.jax_default_device or jax.default_backend()  # ty: ignore[missing-attribute]
    return jax.devices(default)[0].platform if isinstance(default, str) else default.platform


def _kernel(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    causal: bool,
    implementation: Implementation,
    platform: str,
) -> Callable[..., Array] | None:
    """The fused kernel for this attention, or None."""
    if implementation == "auto":
        implementation = _fastest(platform)
        if min(q.shape[2], k.shape[2]) < SMALLEST_FUSED.get(implementation, 0):
            return None
    if implementation == "cudnn" and cudnn_accepts(q, k, v):
        return cudnn_attention
    if implementation == "pallas" and pallas_accepts(q, k, v, mask, causal):
        return pallas_attention
    return None


def _fastest(platform: str) -> Implementation:
    if platform == "gpu" and cudnn_runs_here():
        return "cudnn"
    # Without a mesh nobody knows which of several devices hold the arrays, and the compiler cannot cut the kernel.
    if platform == "tpu" and (jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty):
        return "pallas"
    return "xla"


def _attend(
    q: Array, k: Array, v: Array, mask: Array | None, dropout: Callable[[Array], Array] | None
) -> Array:
    if k.shape[2] == 0:  # a sum over nothing
        return jnp.zeros((*q.shape[:3], v.shape[-1]), v.dtype)
    # A head that all queries share is not copied for each of them.
    shared = k.shape[1] == 1 and q.shape[1] != 1
    keys, k, v = ("bjk", k[:, 0], v[:, 0]) if shared else ("bhjk", k, v)
    logits = at_least_float32(jnp.einsum(f"bhik,{keys}->bhij", q, k)) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    # The softmax is divided after the product with the values, which has fewer elements.
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if dropout is not None:
        weights = dropout((weights / total).astype(v.dtype))
        return jnp.einsum(f"bhij,{keys}->bhik", weights, v)
    # The undivided sums may be too large for float16.
    out = jnp.einsum(f"bhij,{keys}->bhik", weights.astype(v.dtype), v, preferred_element_type=total.dtype)
    return (out / total).astype(v.dtype)
