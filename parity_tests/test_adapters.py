"""A right and a wrong port in each JAX library: the right one is equal, the wrong one differs in the layer that is wrong."""

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
import torch
from flax import linen
from torch import nn

from jaxmodels.compare import Function, Haiku, Linen, Pair, Result, compare, table_from_names
from parity_tests.adapter_pairs import (
    FEATURES,
    IMAGES,
    KEY,
    TOKENS,
    channels_last,
    judged,
    line_of,
    place,
    vmapped,
)
from parity_tests.toy_pairs import in_torch


pytestmark = pytest.mark.usefixtures("without_diagnosis")


class LinenImages(linen.Module):
    """Normalised, convolved and upsampled images, and a feature of each."""

    epsilon: float = 1e-5

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Conv(6, (3, 3), padding=1, feature_group_count=2, name="conv")(x)
        x = linen.BatchNorm(not train, epsilon=1e-5, name="batch")(x)
        x = linen.GroupNorm(2, epsilon=self.epsilon, name="group")(x)
        x = linen.ConvTranspose(4, (2, 2), (2, 2), "VALID", name="up")(jax.nn.relu(x))
        return linen.Dense(3, name="head")(x.mean((1, 2)))


def torch_images() -> nn.Module:
    return in_torch(
        lambda self, x: self.head(self.up(self.group(self.batch(self.conv(x))).relu()).mean((2, 3))),
        conv=nn.Conv2d(4, 6, 3, padding=1, groups=2),
        batch=nn.BatchNorm2d(6),
        group=nn.GroupNorm(2, 6),
        up=nn.ConvTranspose2d(6, 4, 2, stride=2),
        head=nn.Linear(4, 3),
    )


def linen_images(**options: Any) -> Result:
    module = LinenImages(**options)
    variables = module.init(KEY, jnp.ones((1, 6, 6, 4)), train=True)
    return judged(Linen(module, variables, train=False), torch_images(), IMAGES, to_ours=channels_last)


class TestLinen:
    def test_images(self) -> None:
        result = linen_images()
        assert result.ok, (result.divergence, result.reason)
        assert {layer.name for layer in result.layers} == {"conv", "batch", "group", "up", "head"}

    def test_wrong_images(self) -> None:
        result = linen_images(epsilon=1e-2)
        assert place(result) == "group"
        assert line_of(result) == 'x = linen.GroupNorm(2, epsilon=self.epsilon, name="group")(x)'

    def test_tokens(self) -> None:
        assert linen_tokens().ok

    def test_wrong_tokens(self) -> None:
        assert place(linen_tokens(scale=2.0)) == "attend"

    def test_heads_of_a_fused_layer(self) -> None:
        """DenseGeneral splits its outputs into heads, and merges its inputs; PyTorch's Linear has merged them."""
        module = linen.Sequential(
            [linen.DenseGeneral((2, 4)), jnp.tanh, linen.DenseGeneral(3, axis=(-2, -1))]
        )
        theirs = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        result = judged((module, module.init(KEY, FEATURES)), theirs, FEATURES)
        assert result.ok, (result.divergence, result.reason)
        assert {layer.name for layer in result.layers} == {"0", "2"}


class LinenTokens(linen.Module):
    scale: float = 1.0

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Embed(7, 8, name="embed")(x)
        x = linen.RMSNorm(epsilon=1e-6, name="rms")(x)
        x = (
            linen.MultiHeadDotProductAttention(2, name="attend")(x * self.scale)
            if self.scale == 1
            else (linen.MultiHeadDotProductAttention(2, name="attend", attention_fn=self.scaled)(x))
        )
        return linen.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x)

    def scaled(self, query: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return linen.dot_product_attention(self.scale * query, *args, **kwargs)


def torch_tokens() -> nn.Module:
    return in_torch(
        lambda self, x: self.norm((lambda y: self.attend(y, y, y)[0])(self.rms(self.embed(x)))),
        embed=nn.Embedding(7, 8),
        rms=nn.RMSNorm(8, eps=1e-6),
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
        norm=nn.LayerNorm(8),
    )


def linen_tokens(**options: Any) -> Result:
    module = LinenTokens(**options)
    return judged((module, module.init(KEY, TOKENS)), torch_tokens(), TOKENS)


class EquinoxImages(eqx.Module):
    conv: eqx.nn.Conv2d
    batch: eqx.nn.BatchNorm
    group: eqx.nn.GroupNorm
    up: eqx.nn.ConvTranspose2d
    head: eqx.nn.Linear

    def __init__(self, epsilon: float = 1e-5, mode: str = "ema") -> None:
        self.conv = eqx.nn.Conv2d(4, 6, 3, padding=1, groups=2, key=KEY)
        self.batch = eqx.nn.BatchNorm(6, "batch", mode=mode)
        self.group = eqx.nn.GroupNorm(2, 6, eps=epsilon)
        self.up = eqx.nn.ConvTranspose2d(6, 4, 2, stride=2, key=KEY)
        self.head = eqx.nn.Linear(4, 3, key=KEY)

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.batch(self.conv(x), state)
        x = self.up(jax.nn.relu(self.group(x)))
        return self.head(x.mean((1, 2))), state


def equinox_images(**options: Any) -> Result:
    return judged(eqx.nn.make_with_state(EquinoxImages)(**options), torch_images(), IMAGES, call_ours=vmapped)


class EquinoxTokens(eqx.Module):
    embed: eqx.nn.Embedding
    rms: eqx.nn.RMSNorm
    attend: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    scale: float = 1.0

    def __init__(self, scale: float = 1.0) -> None:
        self.embed = eqx.nn.Embedding(7, 8, key=KEY)
        self.rms = eqx.nn.RMSNorm(8, eps=1e-6, use_bias=False)
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        self.attend = eqx.nn.MultiheadAttention(2, 8, **biases, key=KEY)
        self.norm = eqx.nn.LayerNorm(8)
        self.dropout = eqx.nn.Dropout(0.5)
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.vmap(self.rms)(jax.vmap(self.embed)(x))
        return jax.vmap(self.norm)(self.dropout(self.attend(x, x, self.scale * x)))


class TestEquinox:
    @pytest.mark.parametrize("mode", ["ema", "batch"])
    def test_images(self, mode: str) -> None:
        result = equinox_images(mode=mode)
        assert result.ok, (result.divergence, result.reason)
        assert {layer.name for layer in result.layers} == {"conv", "batch", "group", "up", "head"}

    def test_wrong_images(self) -> None:
        result = equinox_images(epsilon=1e-2)
        assert place(result) == "group"
        assert line_of(result).startswith("self.group = eqx.nn.GroupNorm(")

    def test_tokens(self) -> None:
        """Layers inside of two vmaps are compared."""
        result = judged(EquinoxTokens(), torch_tokens(), TOKENS, call_ours=vmapped)
        assert result.ok, (result.divergence, result.reason)
        assert {layer.name for layer in result.layers} == {"embed", "rms", "attend", "norm"}

    def test_wrong_tokens(self) -> None:
        result = judged(EquinoxTokens(scale=2.0), torch_tokens(), TOKENS, call_ours=vmapped)
        assert place(result) == "(model)"
        assert "after rms, before attend" in result.divergence.detail

    def test_a_list_of_layers(self) -> None:
        theirs = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        ours = eqx.nn.Sequential(
            [eqx.nn.Linear(8, 6, key=KEY), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(6, 3, key=KEY)]
        )
        assert judged(ours, theirs, FEATURES[0], call_ours=vmapped).ok

    def test_one_example_is_what_it_takes(self) -> None:
        with pytest.raises(
            ValueError, match=r"takes one example: give call_ours, such as lambda model, inputs: jax.vmap"
        ):
            judged(eqx.nn.Linear(8, 6, key=KEY), nn.Linear(8, 6), FEATURES[0])


def haiku_images(epsilon: float = 1e-5) -> Result:
    def images(x: jax.Array, is_training: bool) -> jax.Array:
        x = hk.Conv2D(6, 3, padding=(1, 1), name="conv")(x)
        x = hk.BatchNorm(True, True, 0.9, name="batch")(x, is_training)
        x = hk.LayerNorm(-1, True, True, eps=epsilon, name="norm")(x)
        x = hk.Conv2DTranspose(4, 2, 2, padding="VALID", name="up")(jax.nn.relu(x))
        return hk.Linear(3, name="head")(x.mean((1, 2)))

    transformed = hk.transform_with_state(images)
    params, state = transformed.init(KEY, jnp.ones((1, 6, 6, 4)), is_training=True)
    theirs = in_torch(
        lambda self, x: self.head(
            self.up(self.norm(self.batch(self.conv(x)).movedim(1, -1)).movedim(-1, 1).relu()).mean((2, 3))
        ),
        conv=nn.Conv2d(4, 6, 3, padding=1),
        batch=nn.BatchNorm2d(6),
        norm=nn.LayerNorm(6),
        up=nn.ConvTranspose2d(6, 4, 2, stride=2),
        head=nn.Linear(4, 3),
    )
    ours = Haiku(transformed, params, state, is_training=False)
    return judged(ours, theirs, IMAGES, to_ours=channels_last)


class HaikuBlock(hk.Module):
    """Layers that are made by the constructor."""

    def __init__(self, factor: float, name: str) -> None:
        super().__init__(name)
        self.factor = factor
        self.embed, self.up = hk.Embed(7, 8, name="embed"), hk.Linear(4, name="up")

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.factor * self.up(self.embed(x))


def haiku_tokens(factor: float = 1.0) -> Result:
    transformed = hk.without_apply_rng(hk.transform(lambda x: HaikuBlock(factor, "block")(x)))
    block = in_torch(lambda self, x: self.up(self.embed(x)), embed=nn.Embedding(7, 8), up=nn.Linear(8, 4))
    theirs = in_torch(lambda self, x: self.block(x), block=block)
    return judged((transformed, transformed.init(KEY, TOKENS)), theirs, TOKENS)


class TestHaiku:
    def test_images(self) -> None:
        result = haiku_images()
        assert result.ok, (result.divergence, result.reason)
        assert {layer.name for layer in result.layers} == {"conv", "batch", "norm", "up", "head"}

    def test_wrong_images(self) -> None:
        assert place(haiku_images(epsilon=1e-2)) == "norm"

    def test_tokens(self) -> None:
        result = haiku_tokens()
        assert result.ok, (result.divergence, result.reason)
        assert {layer.name for layer in result.layers} == {"block", "block.embed", "block.up"}

    def test_wrong_tokens(self) -> None:
        result = haiku_tokens(factor=1.1)
        assert place(result) == "block"
        assert line_of(result) == "def __call__(self, x: jax.Array) -> jax.Array:"


def function_pair(factor: float = 1.0) -> Result:
    params = {"blocks": [{"weight": jnp.ones((6, 8)), "bias": jnp.ones(6)}], "scale": jnp.ones(6)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        (block,) = params["blocks"]
        return factor * params["scale"] * (x @ block["weight"].T + block["bias"])

    theirs = in_torch(lambda self, x: self.scale * self.blocks[0](x), blocks=nn.ModuleList([nn.Linear(8, 6)]))
    theirs.scale = nn.Parameter(torch.ones(6))
    return judged(Function(apply, params), theirs, FEATURES)


class TestFunction:
    def test_equal(self) -> None:
        result = function_pair()
        assert result.ok, (result.divergence, result.reason)
        assert not result.layers

    def test_wrong(self) -> None:
        result = function_pair(factor=1.1)
        assert result.verdict == "different"
        assert line_of(result) == "def apply(params: Any, x: jax.Array) -> jax.Array:"

    def test_inputs_are_passed_by_name(self) -> None:
        """Whatever the order of the dict, in each library."""

        def apply(params: Any, x: jax.Array, context: jax.Array) -> jax.Array:
            return x @ params["layer"]["weight"].T + params["layer"]["bias"] - context

        theirs = in_torch(None, layer=nn.Linear(8, 8))
        theirs.__class__.forward = lambda self, x, context: self.layer(x) - context
        ours = Function(apply, {"layer": {"weight": jnp.ones((8, 8)), "bias": jnp.ones(8)}})
        inputs = {"context": FEATURES, "x": FEATURES**2}
        table = table_from_names(ours, theirs)
        pair = Pair(name="names", ours=ours, theirs=theirs, table=table, inputs=inputs)
        assert compare(pair, gradients=False).ok
