"""Division by the Euclidean norm, with PyTorch's value and gradient at zero."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def l2_normalize(x: Float[Array, "*b d"], *, eps: float = 1e-12) -> Float[Array, "*b d"]:
    """x / max(‖x‖₂, eps) over the last axis, like `torch.nn.functional.normalize`.

    The gradient is finite everywhere: below `eps` the function is x / eps. The square root is guarded
    because its derivative at zero is infinite, and infinite times zero is NaN in reverse mode.
    """
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    is_zero = square == 0
    norm = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))
    return x / jnp.maximum(norm, jnp.asarray(eps, x.dtype))
