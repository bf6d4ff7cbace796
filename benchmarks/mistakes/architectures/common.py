"""What the architectures share: random weights, inputs, losses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch.nn import functional as F

from benchmarks.mistakes.pieces import Piece
from jaxmodels.compare import Pair, table_from_names


NOISE = 0.1  # added to all weights: scales of one and biases of zero hide mistakes
IGNORED = -100


def random_weights(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """A model in evaluation mode whose weights and statistics are random, positive where they must be."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(NOISE * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def tokens(seed: int, *shape: int, vocabulary: int) -> np.ndarray:
    """Token indices, some of which are 0."""
    return np.random.default_rng(seed).integers(0, vocabulary, shape)


def images(seed: int, batch: int, size: int) -> np.ndarray:
    """Normal (b c h w)."""
    return np.random.default_rng(seed).normal(size=(batch, 3, size, size))


def labelled(ours: Any, theirs: torch.nn.Module, inputs: dict[str, np.ndarray], **options: Any) -> Pair:
    """A pair with cross-entropy as its loss; a quarter of the labels is ignored."""
    labels = inputs.pop("labels")
    call = options.pop("call", lambda model, inputs: model(*inputs.values()))

    def loss_theirs(model: torch.nn.Module, inputs: Any) -> torch.Tensor:
        logits = call(model, inputs)
        return F.cross_entropy(logits.flatten(0, -2), torch.from_numpy(labels).flatten())

    def loss_ours(model: Any, inputs: Any) -> jax.Array:
        logits = call(model, inputs)
        return cross_entropy(model, logits.reshape(-1, logits.shape[-1]), labels.ravel())

    return Pair(
        name=type(theirs).__name__,
        ours=ours,
        theirs=theirs,
        table=table_from_names(ours, theirs),
        inputs=inputs,
        call_ours=call,
        call_theirs=call,
        loss_ours=loss_ours,
        loss_theirs=loss_theirs,
        **options,
    )


def cross_entropy(piece: Piece, logits: jax.Array, labels: np.ndarray) -> jax.Array:
    """The mean over labels that are not ignored, or another number."""
    valid = labels != IGNORED
    targets = jax.nn.one_hot(np.where(valid, labels, 0), logits.shape[-1])
    if piece.has("label smoothing of 0.1"):
        targets = optax.smooth_labels(targets, 0.1)
    losses = optax.softmax_cross_entropy(logits, targets)
    if piece.has("ignored labels counted in the mean"):
        return jnp.where(valid, losses, 0).mean()
    if piece.has("loss in bits"):
        losses = losses / np.log(2)
    if piece.has("ignored labels taken for class 0"):
        return losses.mean()
    total = jnp.where(valid, losses, 0).sum()
    return total if piece.has("sum of the losses") else total / valid.sum()


def labels_for(seed: int, *shape: int, classes: int) -> np.ndarray:
    """Labels, a quarter of them ignored: never the first two, or a sum would be a mean, and always the last."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(shape) < 0.25, IGNORED, rng.integers(0, classes, shape))
    labels.flat[:2], labels.flat[-1] = 1, IGNORED
    return labels


CHANNELS_LAST: dict[str, Callable[..., Any]] = {
    "to_ours": lambda inputs: {name: np.moveaxis(value, 1, -1) for name, value in inputs.items()}
}


def parameter(*shape: int) -> nnx.Param:
    """An array that PyTorch's weights fill."""
    return nnx.Param(jnp.zeros(shape))
