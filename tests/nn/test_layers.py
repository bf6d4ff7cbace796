"""Layers in one loop compute what they compute one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels.nn import Linear
from jaxmodels.nn.layers import in_turn


class Stack(nnx.Module):
    """Layers of which each may have weights of its own shape."""

    def __init__(self, widths: list[int]) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([Residual(4, width, rngs=rngs) for width in widths])

    def __call__(self, x: jax.Array) -> jax.Array:
        return in_turn(self.layers, lambda layer, x: layer(x), x)


class Residual(nnx.Module):
    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.up, self.down = Linear(dim, hidden, rngs=rngs), Linear(hidden, dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jnp.tanh(self.up(x)))


X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4)), jnp.float32)


def one_by_one(model: Stack, x: jax.Array) -> jax.Array:
    for layer in model.layers:
        x = layer(x)
    return x


def loops(model: Stack) -> int:
    return jax.jit(lambda model, x: model(x)).lower(model, X).as_text().count("stablehlo.while")


@pytest.mark.parametrize(
    ("widths", "expected"), [([], 0), ([5], 0), ([5, 5], 1), ([5, 5, 5], 1), ([5, 6], 0), ([5, 6, 5], 0)]
)
def test_a_loop_where_layers_are_alike(widths, expected) -> None:
    model = Stack(widths)

    assert loops(model) == expected
    np.testing.assert_allclose(model(X), one_by_one(model, X), rtol=1e-6)


def test_gradients_of_every_weight() -> None:
    model = Stack([5, 5, 5])
    structure, weights = nnx.split(model)

    def loss(weights, call):
        return jnp.square(call(nnx.merge(structure, weights), X)).sum()

    looped = jax.grad(loss)(weights, lambda model, x: model(x))
    expected = jax.grad(loss)(weights, one_by_one)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), looped, expected)


def test_captures_see_every_layer() -> None:
    model = Stack([5, 5, 5])
    result, captured = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)(X)

    layers = nnx.to_pure_dict(captured)["layers"]
    assert sorted(layers) == [0, 1, 2]
    np.testing.assert_array_equal(layers[2]["__call__"][0], result)
    np.testing.assert_array_equal(result, one_by_one(model, X))
    assert loops(model) == 1, "afterwards as before"


def test_layers_of_other_structure() -> None:
    model = Stack([5, 5])
    model.layers[1].up = Linear(4, 5, use_bias=False, rngs=nnx.Rngs(1))

    assert loops(model) == 0
    np.testing.assert_array_equal(model(X), one_by_one(model, X))
