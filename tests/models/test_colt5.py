"""The routed ViT without PyTorch: errors, gradients, routing, windows."""

import dataclasses
import json
import re
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmodels import ConditionalRoutedViT, ConditionalRoutedViTConfig
from jaxmodels.training.presets.colt5 import readme
from tests.properties import check_batch, check_bfloat16, check_gradients, check_jit
from tests.quick_compilation import AS_USERS
from tests.small_models import COLT5_CONFIG


CONFIG = COLT5_CONFIG
ROUTES = replace(CONFIG, attn_num_routed_kv=2)


# Compiled as one program: otherwise JAX compiles every operation for every shape.
forward = jax.jit(lambda model, images, routing=None: model(images, routing))


def build(config: ConditionalRoutedViTConfig = CONFIG, **layer) -> ConditionalRoutedViT:
    return ConditionalRoutedViT(config, rngs=nnx.Rngs(0), **layer)


@pytest.fixture(scope="module")
def model() -> ConditionalRoutedViT:
    return build(ROUTES)


def images(b: int = 3, height: int = 16, width: int = 12, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (b, height, width, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": (30, 12)},
            r"image_size height must be a multiple of patch_size height; got .*=30, .*=4",
        ),
        (
            {"image_size": (16, 12, 3)},
            r"image_size must be an integer ≥ 1 or a pair \(height, width\) of them",
        ),
        ({"patch_size": 0}, r"patch_size must be an integer ≥ 1 or a pair"),
        ({"num_classes": 0}, r"num_classes must be an integer ≥ 1; got num_classes=0"),
        ({"dim": 4}, r"dim must be an integer ≥ 8; got dim=4"),
        ({"dim": 10}, r"dim must be a multiple of 4, for the position table; got dim=10"),
        ({"depth": -1}, r"depth must be an integer ≥ 0; got depth=-1"),
        ({"attn_num_heavy_tokens_q": 0}, r"attn_num_heavy_tokens_q must be an integer ≥ 1; got .*=0"),
        ({"attn_num_heavy_tokens_kv": 2.5}, r"attn_num_heavy_tokens_kv must be an integer ≥ 1; got .*=2\.5"),
        ({"ff_num_heavy_tokens": True}, r"ff_num_heavy_tokens must be an integer ≥ 1; got .*=True"),
        ({"attn_light_window_size": (2, 2)}, r"attn_light_window_size must be an integer ≥ 1"),
        (
            {"attn_light_window_size": 3},
            r"image_size height in patches must be a multiple of attn_light_window",
        ),
        (
            {"attn_num_routed_kv": 3},
            r"attn_heavy_heads must be a multiple of attn_num_routed_kv; got .*=4, .*=3",
        ),
        ({"ff_light_mult": 0.1}, r"int\(dim \* ff_light_mult\) must be ≥ 1; got dim=8, ff_light_mult=0\.1"),
        ({"ff_heavy_mult": "4"}, r"int\(dim \* ff_heavy_mult\) must be ≥ 1; got dim=8, ff_heavy_mult='4'"),
        ({"channels": 0}, r"channels must be an integer ≥ 1"),
        ({"router_straight_through": 1}, r"router_straight_through must be a bool; got .*=1"),
        ({"default_coor_descent_eps": 0}, r"eps must be > 0; got eps=0"),
        (
            {"router_kwargs": {"num_routing_tokens": 2}},
            r"router_kwargs must hold nothing but .*; got num_rout",
        ),
        ({"router_kwargs": {"eps": "1"}}, r"eps must be a number; got eps='1'"),
        ({"router_kwargs": {"cosine_sim_routing": 1}}, r"cosine_sim_routing must be a bool; got .*=1"),
        ({"router_kwargs": {"fetch_k_ratio": 0.5}}, r"fetch_k_ratio must be ≥ 1; got fetch_k_ratio=0\.5"),
        ({"tie_break": "first"}, r'tie_break must be "similarity" or "index"; got tie_break=\'first\''),
    ],
)
def test_wrong_configuration(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionalRoutedViTConfig(**asdict(CONFIG) | changes)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("shape", "routing", "message"),
    [
        ((16, 12, 3), None, r"images must have shape \(b, height, width, 3\)"),
        ((1, 3, 16, 12), None, r"images must have shape \(b, height, width, 3\)"),
        ((1, 18, 12, 3), None, r"image height must be a multiple of patch_size height; got .*=18, .*=4"),
        (
            (1, 16, 14, 3),
            None,
            r"image width in patches must be a multiple of attn_light_window_size; got .*=7",
        ),
        ((1, 0, 12, 3), None, r"image height must be an integer ≥ 1"),
        ((1, 16, 12, 3), [None] * 2, r"routing must have an entry for each of the 3 routers; got 2"),
        (
            (1, 16, 12, 3),
            [jnp.zeros((6, 2), int), None, None],
            r"indices must have shape \(6, 1, 2\); got indices\.shape=\(6, 2\)",
        ),
    ],
)
def test_wrong_call(model, shape, routing, message) -> None:
    with pytest.raises(ValueError, match=message):
        model(jnp.zeros(shape), routing)


@pytest.mark.usefixtures("unchecked_types")
def test_integer_images_are_refused(model) -> None:
    with pytest.raises(ValueError, match="images must be floating-point"):
        model(jnp.zeros((1, 16, 12, 3), jnp.uint8))


def test_configuration_survives_json_and_can_be_hashed() -> None:
    options = {"eps": 0.1, "cosine_sim_routing": True}
    config = replace(CONFIG, image_size=[16, 12], router_kwargs=options)
    options["eps"] = 1.0
    again = ConditionalRoutedViTConfig(**json.loads(json.dumps(asdict(config))))
    assert again == config
    assert hash(again) == hash(config)
    assert asdict(config)["router_kwargs"] == {"eps": 0.1, "cosine_sim_routing": True}
    assert config.router_kwargs["eps"] == 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 16


def test_jit(model) -> None:
    check_jit(model, images())


def test_batch(model) -> None:
    check_batch(model, images(), call=forward)


def test_gradients(model) -> None:
    check_gradients(model, images())


def test_gradients_are_finite_where_tokens_are_zero() -> None:
    model = build()
    tokens = jnp.zeros((1, 4, 6, 8))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(model.transformer(x)))))(tokens)
    assert jnp.isfinite(gradient).all()


def test_bfloat16() -> None:
    # The routers are disabled: with rounded tokens they may select others, which changes the output.
    config = replace(CONFIG, attn_num_heavy_tokens_q=4, attn_num_heavy_tokens_kv=4, ff_num_heavy_tokens=24)
    check_bfloat16(lambda dtype: build(config, dtype=dtype), images(), call=forward, distance=0.05)
    out = forward(build(dtype=jnp.bfloat16), images())
    assert out.dtype == jnp.bfloat16
    assert jnp.isfinite(out.astype(jnp.float32)).all()


@pytest.mark.usefixtures("full_optimisation")
def test_forward_has_no_loop() -> None:
    """Selection by similarity with straight-through needs no descent: only the softmax takes exponentials."""

    def program(config: ConditionalRoutedViTConfig) -> str:
        return jax.jit(lambda m, x: m(x)).lower(build(config), images()).compile(AS_USERS).as_text()

    text = program(CONFIG)
    assert " while(" not in text
    assert len(re.findall(r"exponential\(", text)) == 2
    assert " while(" in program(replace(CONFIG, tie_break="index"))


def test_no_attention_crosses_a_window() -> None:
    """If the heavy feed-forward takes every token, no operation crosses a window's border."""
    model = build(replace(CONFIG, depth=2, ff_num_heavy_tokens=24))
    tokens = jax.random.normal(jax.random.key(0), (1, 4, 6, 8))
    transformer = jax.jit(lambda x: model.transformer(x))
    changed = transformer(tokens.at[0, 1, 3].add(1.0)) != transformer(tokens)
    window = jnp.zeros((4, 6), bool).at[0:2, 2:4].set(True)
    assert changed[0, window].any(axis=-1).all()
    assert not changed[0, ~window].any()


def test_unrouted_queries_get_the_null_token() -> None:
    model = build()
    attn = model.transformer.blocks[0].attn
    tokens = jax.random.normal(jax.random.key(0), (1, 2, 2, 8))
    out = attn(tokens, jnp.array([[[2, 0]]])).reshape(4, 8)
    light = (tokens.reshape(1, 4, 8) + attn.light_attn(tokens.reshape(1, 4, 8)))[0]
    for i in (1, 3):
        np.testing.assert_allclose(out[i] - light[i], attn.null_q_token[...], rtol=0, atol=1e-6)
    for i in (0, 2):
        assert jnp.abs(out[i] - light[i] - attn.null_q_token[...]).max() > 0.01


def test_routing_can_be_read_and_repeated(model) -> None:
    routed = jax.jit(lambda m, x: m.routing(x))(model, images())
    assert [r.indices.shape for r in routed] == [(18, 1, 2), (18, 2, 3), (3, 1, 7)]
    assert len(model.routers) == 3
    again = forward(model, images(), [r.indices for r in routed])
    np.testing.assert_allclose(again, forward(model, images()), rtol=0, atol=1e-6)
    other = forward(model, images(), [jnp.flip(r.indices, axis=0) for r in routed])
    assert jnp.abs(other - again).max() > 1e-3
    reordered = forward(model, images(), [jnp.flip(r.indices, axis=-1) for r in routed])
    np.testing.assert_allclose(reordered, again, rtol=0, atol=1e-6)


def test_other_image_sizes(model) -> None:
    for size in ((8, 8), (32, 4)):
        assert jax.eval_shape(forward, model, images(2, *size)).shape == (2, 5)


def test_full_size_shapes() -> None:
    """The configuration of the package's README."""
    config = readme().model
    model = nnx.eval_shape(lambda: build(config))
    shape = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    assert jax.eval_shape(lambda m, x: m(x), model, shape).shape == (2, 1000)
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model))) == 95_512_552


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    window=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    routes=st.integers(1, 2),
    tokens=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12)),
    tie_break=st.sampled_from(["similarity", "index"]),
)
def test_random_configurations(window, grid, routes, tokens, tie_break) -> None:
    height, width = 4 * window * grid[0], 2 * window * grid[1]
    config = replace(
        CONFIG,
        image_size=(height, width),
        attn_light_window_size=window,
        attn_num_routed_kv=routes,
        attn_num_heavy_tokens_q=tokens[0],
        attn_num_heavy_tokens_kv=tokens[1],
        ff_num_heavy_tokens=tokens[2],
        tie_break=tie_break,
    )
    model, x = build(config), images(2, height, width)
    out = forward(model, x)
    assert out.shape == (2, 5)
    assert jnp.isfinite(out).all()
    swapped = forward(model, x[::-1])
    np.testing.assert_allclose(swapped[::-1], out, rtol=0, atol=1e-5)
