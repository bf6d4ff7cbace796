"""Parity rows of SimpleViT: a base, then one row per option and mode."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_reference
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig
from parity_tests.cases.case import Case, training_mode
from parity_tests.cases.vit_pytorch import published


BASE = SimpleViTConfig(
    image_size=8, patch_size=4, num_classes=3, dim=8, depth=1, heads=2, mlp_dim=12, dim_head=3
)
DROPOUT_SEED = 3


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None]:
    """The package builds its position table in PyTorch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def published_tokens(model: Any, img: torch.Tensor) -> torch.Tensor:
    """What the package gives to MaMMUT as image tokens."""
    extractor = published("extractor").Extractor(model, return_embeddings_only=True, detach=False)
    tokens = extractor(img)
    extractor.eject()
    return tokens


def dropping_patches(call: Callable[[Any, Any], Any], images: str, n: int) -> Callable[[Any, Any], Any]:
    """Runs `call` in training mode with the noise that JAX draws from DROPOUT_SEED.

    Args:
      call: with the model and the inputs.
      images: which of the inputs are the images.
      n: number of their patches.
    """

    def run(model: Any, x: Any) -> Any:
        key = nnx.Rngs(dropout=DROPOUT_SEED).dropout()
        noise = np.array(jax.random.normal(key, (len(x[images]), n), jnp.float32))
        with training_mode(model), mock.patch("torch.randn", return_value=torch.from_numpy(noise)):
            return call(model, x)

    return run


def row(
    name: str,
    *,
    size: tuple[int, int] = (8, 8),
    offset: float = 0.0,
    tokens: bool = False,
    drop: bool = False,
    **changes: Any,
) -> Case:
    config = replace(BASE, **changes)
    sides = config.patch_size if isinstance(config.patch_size, tuple) else (config.patch_size,) * 2
    n = size[0] // sides[0] * (size[1] // sides[1])

    def call_jax(model: SimpleViT, x: Any) -> jax.Array:
        rngs = nnx.Rngs(dropout=DROPOUT_SEED) if drop else None
        model = nnx.view(model, deterministic=not drop)
        return model.tokens(**x, rngs=rngs) if tokens else model(**x, rngs=rngs)

    def call_torch(model: Any, x: Any) -> torch.Tensor:
        return model.tokens(**x) if tokens else model(**x)

    def call_published(model: Any, x: Any) -> torch.Tensor:
        with default_dtype(x["img"].dtype):
            return published_tokens(model, **x) if tokens else model(**x)

    return Case(
        name=f"simple_vit/{name}",
        config=config,
        jax=lambda: SimpleViT(config, rngs=nnx.Rngs(0)),
        reference=lambda: torch_reference.SimpleViT(**asdict(config)),
        published=lambda: published("simple_vit_with_patch_dropout").SimpleViT(**asdict(config)),
        inputs=lambda rng: {"img": offset + rng.normal(size=(2, config.channels, *size))},
        to_jax=lambda x: {"images": x["img"].transpose(0, 2, 3, 1)},
        call_torch=dropping_patches(call_torch, "img", n) if drop else call_torch,
        call_jax=call_jax,
        call_published=dropping_patches(call_published, "img", n) if drop else call_published,
        options=frozenset({"tokens"} if tokens else ()) | frozenset({"patch dropout"} if drop else ()),
    )


CASES = [
    row("base"),
    row("image_size", image_size=(8, 12), size=(8, 12)),
    row("patch_size", patch_size=(4, 2)),
    row("num_classes", num_classes=1),
    row("dim", dim=12),
    row("depth", depth=2),
    row("heads", heads=1),
    row("mlp_dim", mlp_dim=5),
    row("channels", channels=1),
    row("dim_head", dim_head=5),
    row("patch_dropout", patch_dropout=0.3, drop=True, size=(16, 12)),
    row("tokens", tokens=True),
    row("tokens with patch dropout", tokens=True, drop=True),
    row("another image size", size=(4, 20)),
    row("off-centre input", offset=30.0),
]
MODES = {"tokens", "patch dropout"}
