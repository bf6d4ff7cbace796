"""The PyTorch and the JAX model of MaMMUT with the same weights, their inputs, and a call of both."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxmodels as jm
import torch_reference


GOLDEN: dict[str, Any] = {
    "dim": 8, "num_tokens": 13, "depth": 2, "image_dim": 6, "num_img_queries": 3, "dim_head": 4, "heads": 2,
    "ff_mult": 2, "dim_latents": 5, "cross_attend_every": 2,
}  # fmt: skip
TEXT = np.array([[2, 12, 12, 2, 6, 0, 0], [6, 6, 8, 12, 6, 2, 12]])
LEFT_PADDED = np.array([[0, 0, 0, 2, 6, 12, 8], [0, 0, 0, 12, 6, 2, 12]])
LABELS = np.array([[11, 9, 8, 8, 9, 11, 1], [1, 5, 10, 3, 10, 5, 1]])
IMAGE_TOKENS = np.sin(0.1 * np.arange(1, 49) ** 2).reshape(2, 4, 6)


def fill(model: torch.nn.Module, offset: int = 0) -> torch.nn.Module:
    """Sets the weights of the recorded numbers, in float64. The buffers stay as constructed."""
    model = model.double()
    with torch.no_grad():
        for k, (key, p) in enumerate(model.named_parameters()):
            i = np.arange(1, p.numel() + 1, dtype=np.int64)
            wave = 0.3 * np.sin(0.1 * (i * i) + float(k + offset)) + key.endswith("gamma")
            p.copy_(torch.from_numpy(wave.reshape(tuple(p.shape))))
        model.temperature.fill_(0.2589628099946621)
    return model


def to_jax(reference: torch.nn.Module, config: jm.MaMMUTConfig) -> jm.MaMMUT:
    ours = nnx.eval_shape(lambda: jm.MaMMUT(config, rngs=nnx.Rngs(0)))
    return jm.load_state_dict(ours, reference.state_dict())


def golden_pair(offset: int = 0, **changes: Any) -> tuple[torch_reference.MaMMUT, jm.MaMMUT]:
    reference = fill(torch_reference.MaMMUT(**GOLDEN | changes), offset)
    return reference, to_jax(reference, jm.MaMMUTConfig(**GOLDEN | changes))


@functools.cache
def compiled(method: str) -> Callable:
    return jax.jit(lambda model, arguments: getattr(model, method)(**arguments))


def both(pair, method: str, **arguments: np.ndarray) -> list[list[np.ndarray]]:
    """The results of one method of both models, as lists of arrays; the reference's comes first."""
    theirs = getattr(pair[0], method)(**{k: torch.from_numpy(v) for k, v in arguments.items()})
    ours = compiled(method)(pair[1], {k: jnp.asarray(v) for k, v in arguments.items()})
    theirs, ours = (out if isinstance(out, tuple) else (out,) for out in (theirs, ours))
    return [[x.detach().numpy() for x in theirs], [np.asarray(x) for x in ours]]
