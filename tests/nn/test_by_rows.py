"""`by_rows` gives the same product, and its gradient compiles without transposed copies on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodels.nn import by_rows


def mlp(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    hidden = jnp.tanh(by_rows(lambda rows: rows @ up, x))
    return jnp.square(by_rows(lambda rows: rows @ down, hidden)).sum()


def plain(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    return jnp.square(jnp.tanh(x @ up) @ down).sum()


def test_gradients_of_matrices_need_no_transposed_copies(full_optimisation: None) -> None:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 96, 64), (64, 256), (256, 64))]

    def transposes(function) -> int:
        text = jax.jit(jax.grad(function, argnums=(1, 2))).lower(*shapes).compile().as_text()
        return len(re.findall(r" transpose\(", text))

    assert transposes(mlp) == 0
    assert transposes(plain) > 0  # or this function has become superfluous


@pytest.mark.parametrize("shape", [(4,), (0, 4), (3, 0, 4), (2, 3, 4), (2, 1, 3, 4)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kernel = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)

    out = by_rows(lambda rows: rows @ kernel, jnp.asarray(x))

    assert out.shape == (*shape[:-1], 5)
    np.testing.assert_allclose(out, x @ kernel, rtol=1e-5, atol=1e-6)
