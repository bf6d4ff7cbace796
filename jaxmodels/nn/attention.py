"""Scaled dot-product attention."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmodels.nn.dtypes import at_least_float32


def causal_mask(n: int) -> Bool[Array, "1 1 {n} {n}"]:
    """True where the key does not come after the query."""
    return jnp.tril(jnp.ones((1, 1, n, n), bool))


def attend(
    q: Float[Array, "b h i k"],
    k: Float[Array, "b #h j k"],
    v: Float[Array, "b #h j e"],
    *,
    mask: Bool[Array, "#b #h #i j"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
) -> Float[Array, "b h i e"]:
    """Softmax attention with scale k^-½; `mask` is True where a query may look at a key.

    A query whose keys are all masked gets the plain average of the values, as with PyTorch's
    `masked_fill(-finfo.max)`; it is never NaN. A head axis of 1 in `k` and `v` serves all query heads.
    The softmax is computed in float32 when the inputs are narrower; `dropout` is applied to its result.
    """
    if k.shape[1] == 1 and q.shape[1] != 1:  # multi-query: contract without a copy of k and v for every head
        logits = jnp.einsum("bhik,bjk->bhij", q, k[:, 0])
    else:
        logits = jnp.einsum("bhik,bhjk->bhij", q, k)
    logits = at_least_float32(logits) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    if dropout is not None:
        weights = dropout(weights)
    if v.shape[1] == 1 and q.shape[1] != 1:
        return jnp.einsum("bhij,bje->bhie", weights, v[:, 0])
    return jnp.einsum("bhij,bhje->bhie", weights, v)
