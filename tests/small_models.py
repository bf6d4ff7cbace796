"""One small instance of each model, and a call of it with masks, routing or dropout."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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


RNGS = nnx.Rngs(0)
IMAGES = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
TOKENS = jax.random.randint(jax.random.key(2), (2, 32), 1, 50)
MASK = jnp.arange(32)[None] < jnp.asarray([[32], [20]])

# Sides, heads and widths that all differ: an exchange of any two of them has an effect.
COLT5_CONFIG = ConditionalRoutedViTConfig(
    image_size=(16, 12),
    patch_size=(4, 2),
    num_classes=5,
    dim=8,
    depth=1,
    attn_num_heavy_tokens_q=2,
    attn_num_heavy_tokens_kv=3,
    attn_heavy_dim_head=3,
    attn_heavy_heads=4,
    attn_light_dim_head=5,
    attn_light_heads=2,
    attn_light_window_size=2,
    ff_num_heavy_tokens=7,
    ff_heavy_mult=3,
    ff_light_mult=0.5,
)


def glom(**build: Any) -> tuple[nnx.Module, Callable]:
    config = GlomConfig(dim=32, levels=3, image_size=32, patch_size=8, consensus_self=True)
    return Glom(config, rngs=RNGS, **build), lambda m: m(IMAGES)


def hourglass(**build: Any) -> tuple[nnx.Module, Callable]:
    config = HourglassTransformerLMConfig(
        num_tokens=50, dim=32, max_seq_len=32, depth=(1, 1, 1), shorten_factor=2, heads=2, dim_head=16
    )
    return HourglassTransformerLM(config, rngs=RNGS, **build), lambda m: m(TOKENS, mask=MASK)


def colt5(**build: Any) -> tuple[nnx.Module, Callable]:
    config = ConditionalRoutedViTConfig(
        image_size=32,
        patch_size=8,
        num_classes=5,
        dim=32,
        depth=2,
        attn_num_heavy_tokens_q=4,
        attn_num_heavy_tokens_kv=6,
        attn_heavy_dim_head=16,
        attn_heavy_heads=2,
        attn_light_dim_head=16,
        attn_light_heads=2,
        attn_light_window_size=4,
        ff_num_heavy_tokens=5,
        ff_heavy_mult=4,
        ff_light_mult=1,
    )
    return ConditionalRoutedViT(config, rngs=RNGS, **build), lambda m: m(IMAGES)


def mammut(**build: Any) -> tuple[nnx.Module, Callable]:
    encoder = SimpleViT(
        SimpleViTConfig(
            image_size=32,
            patch_size=8,
            num_classes=5,
            dim=32,
            depth=2,
            heads=2,
            mlp_dim=64,
            patch_dropout=0.0,
        ),
        rngs=RNGS,
        **build,
    )
    config = MaMMUTConfig(
        dim=32, num_tokens=50, depth=2, image_dim=32, num_img_queries=4, heads=2, cross_attend_every=2
    )
    return MaMMUT(config, encoder, rngs=RNGS, **build), lambda m: m.loss(TOKENS, IMAGES).total


def scalable_vit(**build: Any) -> tuple[nnx.Module, Callable]:
    config = ScalableViTConfig(
        num_classes=5,
        dim=16,
        depth=(2, 1),
        heads=(1, 2),
        reduction_factor=(2, 1),
        window_size=(8, None),
        dropout=0.3,
    )
    model = nnx.view(ScalableViT(config, rngs=RNGS, **build), deterministic=False)
    return model, lambda m: m(IMAGES, rngs=nnx.Rngs(dropout=7))


MODELS = [glom, hourglass, colt5, mammut, scalable_vit]
