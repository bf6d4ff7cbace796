"""Layers that compute activations again: the same gradients from less memory, also on a CPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels import (
    ConditionalRoutedViT,
    ConditionalRoutedViTConfig,
    Glom,
    GlomConfig,
    HourglassTransformerLM,
    HourglassTransformerLMConfig,
    MaMMUT,
    MaMMUTConfig,
    ScalableViT,
    ScalableViTConfig,
    SimpleViT,
    SimpleViTConfig,
)
from jaxmodels.nn import Linear, Rematerializable, rematerialized


RNGS = nnx.Rngs(0)
IMAGES = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
TOKENS = jax.random.randint(jax.random.key(2), (2, 32), 1, 50)
MASK = jnp.arange(32)[None] < jnp.asarray([[32], [20]])


def glom() -> tuple[nnx.Module, Callable]:
    return Glom(GlomConfig(dim=32, levels=3, image_size=64, patch_size=8), rngs=RNGS), lambda m: m(IMAGES)


def hourglass() -> tuple[nnx.Module, Callable]:
    config = HourglassTransformerLMConfig(
        num_tokens=50, dim=32, max_seq_len=32, depth=(3, 2, 2), shorten_factor=2, heads=2, dim_head=16
    )
    return HourglassTransformerLM(config, rngs=RNGS), lambda m: m(TOKENS, mask=MASK)


def colt5() -> tuple[nnx.Module, Callable]:
    config = ConditionalRoutedViTConfig(
        image_size=64,
        patch_size=8,
        num_classes=5,
        dim=32,
        depth=3,
        attn_num_heavy_tokens_q=4,
        attn_num_heavy_tokens_kv=6,
        attn_heavy_dim_head=16,
        attn_heavy_heads=2,
        attn_light_dim_head=16,
        attn_light_heads=2,
        attn_light_window_size=4,
        ff_num_heavy_tokens=16,
        ff_heavy_mult=4,
        ff_light_mult=1,
    )
    return ConditionalRoutedViT(config, rngs=RNGS), lambda m: m(IMAGES)


def mammut() -> tuple[nnx.Module, Callable]:
    encoder = SimpleViT(
        SimpleViTConfig(
            image_size=64,
            patch_size=8,
            num_classes=5,
            dim=32,
            depth=3,
            heads=2,
            mlp_dim=64,
            patch_dropout=0.0,
        ),
        rngs=RNGS,
    )
    config = MaMMUTConfig(
        dim=32, num_tokens=50, depth=3, image_dim=32, num_img_queries=4, heads=2, cross_attend_every=2
    )
    return MaMMUT(config, encoder, rngs=RNGS), lambda m: m.loss(TOKENS, IMAGES).total


def scalable_vit() -> tuple[nnx.Module, Callable]:
    config = ScalableViTConfig(
        num_classes=5,
        dim=16,
        depth=(3, 1),
        heads=(1, 2),
        reduction_factor=(2, 1),
        window_size=(8, None),
        dropout=0.3,
    )
    model = nnx.view(ScalableViT(config, rngs=RNGS), deterministic=False)
    return model, lambda m: m(IMAGES, rngs=nnx.Rngs(dropout=7))


def loss_of(model: nnx.Module, call: Callable) -> tuple[Callable, Any]:
    graphdef, state = nnx.split(model)
    return lambda state: jnp.square(call(nnx.merge(graphdef, state))).mean(), state


@pytest.mark.parametrize("make", [glom, hourglass, colt5, mammut, scalable_vit])
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


@pytest.mark.parametrize("make", [glom, hourglass])
def test_less_memory(make: Callable, full_optimisation: None) -> None:
    """Asked of the compiled program: on a CPU XLA undoes `jax.checkpoint` outside of loops."""
    model, call = make()
    memory = {}
    for remat in (False, True):
        loss, state = loss_of(nnx.view(model, remat=remat), call)
        compiled = jax.jit(jax.grad(loss)).lower(state).compile()
        memory[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert memory[True] < 0.75 * memory[False]


class Scaled(Rematerializable):
    def __init__(self) -> None:
        self.linear = Linear(3, 3, rngs=nnx.Rngs(0))
        self.calls = 0

    @rematerialized
    def __call__(self, x: jax.Array, *, factor: jax.Array | None = None, flags: jax.Array | None = None):
        out = jnp.sin(self.linear(x)) * (1 if factor is None else factor)
        return out if flags is None else jnp.where(flags, out, 0)


def test_every_argument_has_its_gradient() -> None:
    layer = Scaled()
    x, factor = jnp.arange(6.0).reshape(2, 3), jnp.asarray([1.0, 2.0, 3.0])
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
    assert "custom_vjp" not in str(jax.make_jaxpr(lambda x: layer(x))(jnp.ones((1, 3))))
    assert "custom_vjp" in str(jax.make_jaxpr(lambda x: nnx.view(layer, remat=True)(x))(jnp.ones((1, 3))))


def test_elsewhere_than_on_a_cpu_a_barrier_orders_the_two() -> None:
    layer = nnx.view(Scaled(), remat=True)
    traced = jax.jit(jax.grad(lambda x: layer(x).sum())).trace(jnp.ones((1, 3)))

    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "optimization_barrier" in text
        assert "divide" not in text
