"""Parity rows of MaMMUT: a base, then one row per option, mode and kind of encoder.

`base` runs the loss, in which every parameter takes part; options that logits show are compared there.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

import mammut_pytorch
import numpy as np
import torch
from flax import nnx

import torch_reference
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig
from parity_tests.cases.case import Case, channels_last
from parity_tests.cases.simple_vit import DROPOUT_SEED, default_dtype, dropping_patches
from parity_tests.cases.vit_pytorch import published
from torch_reference.simple_vit import TokenExtractor


Encoder = Literal["none", "function", "SimpleViT", "SimpleViT dropping patches"]

BASE = MaMMUTConfig(
    dim=8,
    num_tokens=13,
    depth=1,
    dim_latents=5,
    image_dim=6,
    num_img_queries=3,
    dim_head=4,
    heads=2,
    ff_mult=2,
)
VIT = SimpleViTConfig(
    image_size=8, patch_size=4, num_classes=3, dim=8, depth=1, heads=2, mlp_dim=12, dim_head=3
)
RIGHT_PADDED = np.array([[2, 12, 12, 2, 6, 0, 0], [6, 6, 8, 12, 6, 2, 12], [1, 0, 0, 0, 0, 0, 0]])
LEFT_PADDED = RIGHT_PADDED[:, ::-1].copy()
LABELS = np.array([[11, 9, 8, 8, 0, 11, 1], [1, 5, 10, 3, 10, 5, 1], [0, 0, 0, 0, 0, 0, 0]])


def torch_encoder(encoder: Encoder, *, of_package: bool) -> Callable | None:
    match encoder:
        case "none":
            return None
        case "function":
            return lambda images: images.flatten(2).transpose(1, 2)
        case _ if of_package:
            vit = published("simple_vit_with_patch_dropout").SimpleViT(**asdict(VIT))
            return published("extractor").Extractor(vit, return_embeddings_only=True, detach=False)
        case _:
            return TokenExtractor(torch_reference.SimpleViT(**asdict(VIT)))


def jax_encoder(encoder: Encoder) -> Callable | None:
    match encoder:
        case "none":
            return None
        case "function":
            return lambda images: images.reshape(len(images), -1, images.shape[-1])
        case _:
            return SimpleViT(VIT, rngs=nnx.Rngs(1))


def published_call(arguments: dict[str, Any]) -> Callable[[Any, Any], Any]:
    def call(model: torch.nn.Module, x: Any) -> Any:
        with default_dtype(model.temperature.dtype):  # for the position table of vit-pytorch
            return model(**x, **arguments)

    return call


def row(
    name: str,
    *,
    mode: Literal["loss", "logits", "embeddings"] = "loss",
    labels: bool = False,
    text: np.ndarray = RIGHT_PADDED,
    encoder: Encoder = "none",
    **changes: Any,
) -> Case:
    config = replace(BASE, **changes)
    image_dim = config.image_dim or config.dim
    arguments = {"return_loss": mode == "loss", "return_embeddings": mode == "embeddings"}
    drop = encoder == "SimpleViT dropping patches"

    def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays = {"text": text % config.num_tokens}
        if encoder == "none":
            arrays["image_tokens"] = rng.normal(size=(len(text), 4, image_dim))
        elif encoder == "function":
            arrays["images"] = rng.normal(size=(len(text), image_dim, 2, 3))
        else:
            arrays["images"] = rng.normal(size=(len(text), 3, 8, 8))
        return arrays | ({"labels": LABELS % config.num_tokens} if labels else {})

    def call_jax(model: MaMMUT, x: Any) -> Any:
        if drop:
            model, x = nnx.view(model, deterministic=False), {**x, "rngs": nnx.Rngs(dropout=DROPOUT_SEED)}
        match mode:
            case "loss":
                return model.loss(**x).total
            case "logits":
                return model(**x)
            case "embeddings":
                return model.embeddings(**x)

    def call_torch(model: torch.nn.Module, x: Any) -> Any:
        return model(**x, **arguments)

    call_published = published_call(arguments)
    return Case(
        name=f"mammut/{name}",
        config=config,
        jax=lambda: MaMMUT(config, img_encoder=jax_encoder(encoder), rngs=nnx.Rngs(0)),
        reference=lambda: torch_reference.MaMMUT(
            **asdict(config), img_encoder=torch_encoder(encoder, of_package=False)
        ),
        published=lambda: mammut_pytorch.MaMMUT(
            **asdict(config), img_encoder=torch_encoder(encoder, of_package=True)
        ),
        inputs=inputs,
        to_jax=channels_last("images"),
        call_torch=dropping_patches(call_torch, "images", 4) if drop else call_torch,
        call_jax=call_jax,
        call_published=dropping_patches(call_published, "images", 4) if drop else call_published,
        options=frozenset({mode, encoder, *(["labels"] if labels else [])}),
    )


CASES = [
    row("base"),
    row("dim", mode="logits", dim=6),
    row("num_tokens", num_tokens=17, depth=0),
    row("depth", mode="logits", depth=2),
    row("cross_attend_every", mode="logits", cross_attend_every=2, depth=2),
    row("cross_attend_layers", mode="logits", cross_attend_layers=(1, 3), depth=3),
    row("no cross-attention", mode="logits", cross_attend_layers=()),
    row("dim_latents", dim_latents=None, depth=0),
    row("image_dim", image_dim=None, depth=0),
    row("num_img_queries", mode="logits", num_img_queries=0),
    row("dim_head", mode="logits", dim_head=6),
    row("heads", mode="logits", heads=1),
    row("ff_mult", mode="logits", ff_mult=1),
    row("caption_loss_weight", caption_loss_weight=2.0, depth=0),
    row("contrastive_loss_weight", contrastive_loss_weight=0.25, depth=0),
    row("pad_id", pad_id=-1),
    row("labels", labels=True),
    row("logits", mode="logits", text=LEFT_PADDED),
    row("embeddings", mode="embeddings", text=LEFT_PADDED),
    row("function as encoder", encoder="function", depth=0),
    row("SimpleViT as encoder", mode="logits", encoder="SimpleViT", image_dim=8),
    row("patch dropout", encoder="SimpleViT dropping patches", image_dim=8, depth=0),
]
MODES = {"loss", "logits", "embeddings", "labels", "function", "SimpleViT", "SimpleViT dropping patches"}
