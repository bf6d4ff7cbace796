"""Scaled dot-product attention."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxmodels.checks import require_choice
from jaxmodels.nn.dtypes import at_least_float32


# Causal attention takes this many queries at a time: it skips most masked keys, and a block fits a CPU's cache.
BLOCK = 128

Implementation = Literal["xla", "cudnn"]


class AttentionModule(nnx.Module):
    """A module with attention; `nnx.view(model, attention="cudnn")` makes it use cuDNN's fused kernel."""

    attention: Implementation = "xla"

    def set_view(self, attention: Implementation | None = None) -> None:
        """Used by `nnx.view`.

        Args:
          attention: "xla", or "cudnn" for NVIDIA GPUs; see `attend`.
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
    implementation: Implementation = "xla",
) -> Float[Array, "b h i e"]:
    """Softmax attention with the scale k^-½. The softmax is computed in at least float32.

    Args:
      q, k, v: queries, keys and values. If `k` and `v` have one head, all query heads share it.
      mask: True where a query may attend to a key. A query whose keys are all masked gets the mean of the
        values, as with PyTorch's `masked_fill(-finfo.max)`, not NaN.
      causal: no query attends to later keys; the last query belongs to the last key. `mask` must then leave
        every query a key.
      dropout: applied to the attention weights.
      implementation: "cudnn" uses cuDNN's fused kernel, which never stores the logits. It needs an NVIDIA GPU,
        bfloat16 or float16, keys and values of one width (a multiple of 8, at most 128), no dropout, and even
        lengths if there is a mask. Anything else is computed as with "xla".
    """
    if implementation == "cudnn" and _fusable(q, k, v, mask, causal, dropout):
        return _fused(q, k, v, mask, causal)
    if not causal:
        return _attend(q, k, v, mask, dropout)
    i, j = q.shape[2], k.shape[2]
    blocks = []
    for start in range(0, max(i, 1), BLOCK):
        stop = min(start + BLOCK, i)
        keys = j - i + stop
        keep = jnp.tril(jnp.ones((1, 1, stop - start, keys), bool), j - i + start)
        if mask is not None:
            keep &= (mask if mask.shape[2] == 1 else mask[:, :, start:stop])[..., :keys]
        blocks.append(_attend(q[:, :, start:stop], k[:, :, :keys], v[:, :, :keys], keep, dropout))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=2)


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


def _fusable(
    q: Array, k: Array, v: Array, mask: Array | None, causal: bool, dropout: Callable | None
) -> bool:
    i, j = q.shape[2], k.shape[2]
    masked = mask is not None or (causal and i != j)
    return (
        q.dtype in (jnp.bfloat16, jnp.float16)
        and q.dtype == k.dtype == v.dtype
        and q.shape[-1] == v.shape[-1] <= 128
        and q.shape[-1] % 8 == 0
        and dropout is None
        and q.size > 0
        and j > 0
        and not (masked and (i % 2 or j % 2))
    )


def _fused(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    i, j = q.shape[2], k.shape[2]
    square = i == j
    if causal and not square:  # the kernel's causal mask aligns the first query with the first key
        past = jnp.tril(jnp.ones((1, 1, i, j), bool), j - i)
        mask = past if mask is None else mask & past
    q, k, v = (rearrange(x, "b h n k -> b n h k") for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal and square, implementation="cudnn"
    )
    return rearrange(out, "b n h k -> b h n k")
