"""Small pairs for the tests of the comparison: a network of one's own, and each of the five models."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxmodels.compare import Pair, table_from_names
from jaxmodels.compare.subjects import WEIGHT_NOISE, pair_of, reference_of
from jaxmodels.convert.core import load_state_dict
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig
from jaxmodels.models.glom import Glom, GlomConfig
from jaxmodels.models.hourglass import HourglassTransformerLM
from jaxmodels.models.hourglass_config import HourglassTransformerLMConfig
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
        self.scale = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).mean(dim=(2, 3))
        return self.body(x) * self.scale


class FlaxNet(nnx.Module):
    def __init__(self, *, approximate: bool = False, rngs: nnx.Rngs) -> None:
        self.approximate = approximate
        self.stem = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs)
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x).mean(axis=(1, 2))
        return self.down(jax.nn.gelu(self.up(x), approximate=self.approximate)) * self.scale[...]


NAMES = {"stem": "conv", "up": "body.0", "down": "body.2"}


def net_pair(**options: Any) -> Pair:
    torch.manual_seed(0)
    ours, theirs = FlaxNet(rngs=nnx.Rngs(0), **options), TorchNet()
    return Pair(
        name="net",
        ours=ours,
        theirs=theirs,
        table=table_from_names(ours, theirs, NAMES),
        inputs={"x": np.random.default_rng(0).normal(size=(5, 3, 6, 6))},
        to_ours=lambda x: {"x": x["x"].transpose(0, 2, 3, 1)},
    )


TINY_MODELS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "glom": lambda rngs: Glom(GlomConfig(dim=8, levels=3, image_size=16, patch_size=4), rngs=rngs),
    "hourglass": lambda rngs: HourglassTransformerLM(
        HourglassTransformerLMConfig(
            num_tokens=256, dim=16, max_seq_len=32, depth=(1, 1, 1), shorten_factor=3, heads=2, dim_head=8
        ),
        rngs=rngs,
    ),
    "colt5": lambda rngs: ConditionalRoutedViT(
        ConditionalRoutedViTConfig(
            image_size=(16, 32),
            patch_size=4,
            num_classes=9,
            dim=16,
            depth=1,
            attn_num_heavy_tokens_q=2,
            attn_num_heavy_tokens_kv=3,
            attn_heavy_dim_head=8,
            attn_heavy_heads=2,
            attn_light_dim_head=8,
            attn_light_heads=2,
            attn_light_window_size=4,
            ff_num_heavy_tokens=5,
            ff_heavy_mult=2,
            ff_light_mult=1,
        ),
        rngs=rngs,
    ),
    "mammut": lambda rngs: MaMMUT(
        MaMMUTConfig(dim=16, num_tokens=258, depth=1, image_dim=16, num_img_queries=3, dim_head=8, heads=2),
        img_encoder=SimpleViT(
            SimpleViTConfig(
                image_size=16, patch_size=8, num_classes=3, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8
            ),
            rngs=rngs,
        ),
        rngs=rngs,
    ),
    "scalable_vit": lambda rngs: ScalableViT(
        ScalableViTConfig(
            num_classes=9,
            dim=8,
            depth=(1, 1),
            heads=2,
            reduction_factor=2,
            window_size=(8, None),
            ssa_dim_key=4,
            ssa_dim_value=4,
            iwsa_dim_key=4,
            iwsa_dim_value=4,
        ),
        rngs=rngs,
    ),
}


def tiny_pair(name: str) -> Pair:
    """One of the five models, a few units wide, with weights away from their initial values."""
    model = nnx.eval_shape(lambda: TINY_MODELS[name](nnx.Rngs(0)))
    torch.manual_seed(0)
    theirs = reference_of(model)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(4 * WEIGHT_NOISE * torch.randn_like(parameter))
    return pair_of(load_state_dict(model, theirs.state_dict()), batch=2)
