"""Division by the Euclidean norm, with PyTorch's value and gradient at zero."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def l2_normalize(x: Float[Array, "*b d"], *, eps: float = 1e-12) -> Float[Array, "*b d"]:
    """x / max(‖x‖₂, eps) over the last axis, like `torch.nn.functional.normalize`.

    The gradient is finite everywhere: below `eps` the function is x / eps.
    """
    return _divided(x, eps)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _divided(x: Float[Array, "*b d"], eps: float) -> tuple[Float[Array, "*b d"], Float[Array, "*b 1"]]:
    """x / max(‖x‖₂, eps), and the divisor. The derivative is written out: it needs these two, not `x`."""
    norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    divisor = jnp.maximum(norm, jnp.asarray(eps, x.dtype))
    return x / divisor, divisor


@_divided.defjvp
def _(
    eps: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    z, divisor = _divided(*primals, eps)
    (t,) = tangents
    along = jnp.sum(t * z, axis=-1, keepdims=True)
    grown = jnp.where(divisor > jnp.asarray(eps, z.dtype), along, 0)
    return (z, divisor), ((t - z * grown) / divisor, grown)
