"""Rematerialised layers: fewer residuals, the same gradients, the same dropout masks in both passes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels.nn import Linear, RematModule, rematerialized
from tests.small_models import MODELS


def loss_of(model: nnx.Module, call: Callable) -> tuple[Callable, Any]:
    graphdef, state = nnx.split(model)
    return lambda state: jnp.square(call(nnx.merge(graphdef, state))).mean(), state


@pytest.mark.parametrize("make", MODELS)
def test_same_gradients(make: Callable) -> None:
    """With masks, routing and dropout: the second computation sees what the first one saw."""
    model, call = make()
    gradients = {}
    for remat in (False, True):
        loss, state = loss_of(nnx.view(model, remat=remat), call)
        gradients[remat] = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(state))
    norm = max(np.abs(x).max() for x in jax.tree.leaves(gradients[False][1]))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(norm, 1)),
        gradients[True],
        gradients[False],
    )


@pytest.mark.parametrize("make", MODELS)
def test_fewer_residuals(make: Callable) -> None:
    """Counts what the traced program keeps for the backward pass, before XLA optimises it."""
    model, call = make()
    kept = {}
    for remat in (False, True):
        loss, state = loss_of(nnx.view(model, remat=remat), call)
        residuals = jax.eval_shape(lambda state, loss=loss: jax.vjp(loss, state)[1], state)
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(residuals))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state))

    assert kept[True] - parameters < 0.6 * (kept[False] - parameters)


class Scaled(RematModule):
    def __init__(self) -> None:
        self.linear = Linear(3, 3, rngs=nnx.Rngs(0))

    @rematerialized
    def __call__(self, x: jax.Array, *, factor: jax.Array | None = None, flags: jax.Array | None = None):
        out = jnp.sin(self.linear(x)) * (1 if factor is None else factor)
        return out if flags is None else jnp.where(flags, out, 0)


def test_every_argument_has_its_gradient() -> None:
    layer = Scaled()
    x, factor = jnp.arange(6.0).reshape(2, 3), jnp.asarray([[1.0, 2.0, 3.0]])
    flags = jnp.asarray([[True], [False]])

    def loss(layer: Scaled, x: jax.Array, factor: jax.Array) -> jax.Array:
        return jnp.square(layer(x, factor=factor, flags=flags)).sum()

    plain = jax.grad(loss, argnums=(1, 2))(layer, x, factor)
    again = jax.grad(loss, argnums=(1, 2))(nnx.view(layer, remat=True), x, factor)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, plain)
    assert all(np.abs(g).max() > 0 for g in plain)


def test_off_by_default_and_never_on_without_being_asked() -> None:
    layer = Scaled()

    assert not layer.remat
    assert "remat" not in str(jax.make_jaxpr(lambda x: layer(x))(jnp.ones((1, 3))))
    assert "remat" in str(jax.make_jaxpr(lambda x: nnx.view(layer, remat=True)(x))(jnp.ones((1, 3))))
