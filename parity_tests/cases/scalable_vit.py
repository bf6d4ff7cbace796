"""Parity rows of ScalableViT: a base, then one row per option and mode; tiny, as gradients compile slowly."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import torch
from flax import nnx

import torch_reference
from jaxmodels.models import scalable_vit
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig
from parity_tests.cases.case import Case, training_mode
from parity_tests.cases.vit_pytorch import published


BASE = ScalableViTConfig(
    num_classes=3,
    dim=4,
    depth=(1,),
    heads=2,
    reduction_factor=2,
    window_size=2,
    iwsa_dim_key=3,
    iwsa_dim_value=2,
    ssa_dim_key=2,
    ssa_dim_value=3,
    ff_expansion_factor=2,
)


def drop_torch(x: torch.Tensor, p: float, training: bool, inplace: bool) -> torch.Tensor:
    """Dropout whose mask depends on the values alone, so that both frameworks draw the same one."""
    return torch.where(x > x.detach().mean(), x / (1 - p), 0) if training and p else x


def drop_jax(self: scalable_vit.Dropout, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
    """The same for JAX."""
    if self.deterministic or not self.rate:
        return x
    assert isinstance(rngs, nnx.Rngs), "every site must get the random numbers"
    return jnp.where(x > x.mean(), x / (1 - self.rate), 0)


def training_torch(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def run(model: Any, x: Any) -> Any:
        with training_mode(model), mock.patch("torch.nn.functional.dropout", drop_torch):
            return call(model, x)

    return run


def row(
    name: str,
    *,
    size: tuple[int, int] = (16, 16),
    offset: float = 0.0,
    features: bool = False,
    training: bool = False,
    **changes: Any,
) -> Case:
    config = replace(BASE, **changes)

    def call_jax(model: ScalableViT, x: Any) -> Any:
        rngs = nnx.Rngs(dropout=0) if training else None
        with mock.patch.object(scalable_vit.Dropout, "__call__", drop_jax):
            model = nnx.view(model, deterministic=not training)
            if features:
                return tuple(jnp.moveaxis(map, -1, 1) for map in model.features(**x, rngs=rngs))
            return model(**x, rngs=rngs)

    def call_torch(model: Any, x: Any) -> Any:
        return model.features(**x) if features else model(**x)

    def call_published(model: Any, x: Any) -> Any:
        return published_features(model, **x) if features else model(**x)

    return Case(
        name=f"scalable_vit/{name}",
        config=config,
        jax=lambda: ScalableViT(config, rngs=nnx.Rngs(0)),
        reference=lambda: torch_reference.ScalableViT(**asdict(config)),
        published=lambda: published("scalable_vit").ScalableViT(**asdict(config)),
        inputs=lambda rng: {"img": offset + rng.normal(size=(2, config.channels, *size))},
        to_jax=lambda x: {"images": x["img"].transpose(0, 2, 3, 1)},
        call_torch=training_torch(call_torch) if training else call_torch,
        call_jax=call_jax,
        call_published=training_torch(call_published) if training else call_published,
        options=frozenset({"features"} if features else ()) | frozenset({"dropout"} if training else ()),
    )


def published_features(model: Any, img: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The outputs of the package's stages, which it keeps to itself."""
    outputs: list[torch.Tensor] = []
    hooks = [stage.register_forward_hook(lambda *args: outputs.append(args[-1])) for stage, _ in model.layers]
    model(img)
    for hook in hooks:
        hook.remove()
    return tuple(outputs)


CASES = [
    row("base"),
    row("num_classes", num_classes=1),
    row("dim", dim=5),
    row("depth", depth=(1, 1), window_size=(2, None)),
    row("heads", heads=3),
    row("reduction_factor", reduction_factor=3, size=(14, 17), window_size=None),
    row("window_size", window_size=1, size=(5, 16)),
    row("iwsa_dim_key", iwsa_dim_key=1),
    row("iwsa_dim_value", iwsa_dim_value=4),
    row("ssa_dim_key", ssa_dim_key=5),
    row("ssa_dim_value", ssa_dim_value=1),
    row("ff_expansion_factor", ff_expansion_factor=1),
    row("channels", channels=1),
    row("dropout", dropout=0.4, training=True),
    row(
        "features of staged arguments",
        features=True,
        depth=(0, 1),
        heads=(1, 2),
        window_size=(None, 1),
        ssa_dim_key=(4, 2),
        size=(12, 17),
    ),
    row("off-centre input", offset=30.0),
]
MODES = {"features", "dropout"}
