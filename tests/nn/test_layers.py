"""Layers are Flax's with PyTorch's defaults: filters by type find them, captures see their calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels.nn import Conv, Dropout, Embed, LayerNorm, Linear


LAYERS = {
    nnx.Linear: lambda **kw: Linear(3, 4, rngs=nnx.Rngs(0), **kw),
    nnx.Conv: lambda **kw: Conv(3, 4, kernel_size=1, rngs=nnx.Rngs(0), **kw),
    nnx.LayerNorm: lambda **kw: LayerNorm(3, rngs=nnx.Rngs(0), **kw),
    nnx.Embed: lambda **kw: Embed(5, 3, rngs=nnx.Rngs(0), **kw),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("stored", [jnp.float32, jnp.float64])
def test_kind_capture_and_type(kind: type, stored) -> None:
    """Without `dtype` the parameters decide the type, also those that are loaded after construction."""
    with jax.enable_x64(True):
        layer = LAYERS[kind]()
        assert isinstance(layer, kind)
        nnx.update(layer, jax.tree.map(lambda x: x.astype(stored), nnx.state(layer)))
        inputs = jnp.zeros((2, 1, 1), int) if kind is nnx.Embed else jnp.ones((1, 2, 2, 3), stored)

        forward = nnx.capture(lambda layer: layer(inputs), nnx.Intermediate, method_outputs=nnx.Intermediate)
        output, captured = forward(layer)

        assert output.dtype == stored
        np.testing.assert_array_equal(captured["__call__"][0], output)


def test_a_norm_draws_no_random_number() -> None:
    """So the layers after a norm get the same initial weights as without it."""
    rngs = nnx.Rngs(0)
    LayerNorm(3, rngs=rngs)
    assert int(rngs.params.count[...]) == 0


def test_dropout_is_off_until_asked_for() -> None:
    dropout, x = Dropout(0.4), jnp.arange(1.0, 1001)

    np.testing.assert_array_equal(dropout(x), x)
    dropped = nnx.view(dropout, deterministic=False)(x, rngs=nnx.Rngs(dropout=0))

    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], x[kept] / 0.6, rtol=1e-6)
    assert abs(float(kept.mean()) - 0.6) < 0.05
    np.testing.assert_array_equal(nnx.view(Dropout(0.0), deterministic=False)(x), x)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("rngs", [None, jax.random.key(0)])
def test_dropout_without_a_stream(rngs) -> None:
    """A bare key would give every layer the same mask."""
    dropout = nnx.view(Dropout(0.4), deterministic=False)
    with pytest.raises(
        ValueError, match=r"rngs must be an nnx.Rngs when .*deterministic=False.*pass rngs=nnx.Rngs"
    ):
        dropout(jnp.ones(3), rngs=rngs)
