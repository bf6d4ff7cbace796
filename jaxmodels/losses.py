"""Losses of the five models: pure functions of outputs and labels, computed in float32 at least.

The PyTorch twin is `torch_reference/losses.py`.

Shapes: b any leading axes, v vocabulary or classes, n image patches, z latent width.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from jaxmodels.nn import at_least_float32


def cross_entropy(
    logits: Float[Array, "*b v"],
    labels: Int[Array, "*b"],
    *,
    ignored: int | Int[Array, ""] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, "*b"]:
    """Cross-entropy of every position in nats: the log-sum-exp of its logits minus the logit of its label.

    Args:
      logits: scores of the classes.
      labels: the right classes.
      ignored: a label whose positions get 0; it need not be a class.
      label_smoothing: share of the target that is spread evenly over all classes.
    """
    logits = at_least_float32(logits)
    counted = jnp.ones(labels.shape, bool) if ignored is None else labels != ignored
    labels = jnp.where(counted, labels, 0)[..., None]  # an ignored label must not be looked up
    chosen = jnp.take_along_axis(logits, labels, axis=-1)[..., 0]
    if label_smoothing:
        chosen = (1 - label_smoothing) * chosen + label_smoothing * jnp.mean(logits, axis=-1)
    return jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0)


def mean_cross_entropy(
    logits: Float[Array, "*b v"],
    labels: Int[Array, "*b"],
    *,
    ignored: int | Int[Array, ""] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean of `cross_entropy` over the positions that count; NaN, with zero gradient, where none does.

    With the next tokens as labels it is the loss of a language model, and of captions.
    """
    losses = cross_entropy(logits, labels, ignored=ignored, label_smoothing=label_smoothing)
    if ignored is None:
        return jnp.mean(losses)
    count = jnp.sum(labels != ignored, dtype=losses.dtype)
    return jnp.where(count > 0, jnp.sum(losses) / jnp.maximum(count, 1), jnp.nan)


def contrastive_loss(
    text: Float[Array, "b z"], image: Float[Array, "b z"], temperature: Float[Array, "1"]
) -> Float[Array, ""]:
    """Mean cross-entropy of finding each text's image and each image's text within the batch.

    Args:
      text, image: unit vectors; those of one pair have the same index.
      temperature: logarithm of the factor of the similarities.
    """
    text, image, temperature = map(at_least_float32, (text, image, temperature))
    logits = jnp.einsum("iz,jz->ij", text, image) * jnp.exp(temperature)[:, None]
    pairs = jnp.arange(len(logits))
    return (mean_cross_entropy(logits, pairs) + mean_cross_entropy(logits.T, pairs)) / 2


def denoising_iters(levels: int) -> int:
    """The number of steps after which GLOM's top level is decoded: one more than it needs to see the image.

    The package's README runs 2 · levels steps and decodes the state after this many; later ones get no gradient.
    """
    return levels + 1


def image_from_patches(
    patches: Float[Array, "b n pixels"], *, patch_size: int, height: int
) -> Float[Array, "b height width c"]:
    """Puts decoded patches, row by row of the image, in their places."""
    p = patch_size
    return rearrange(patches, "b (h w) (p1 p2 c) -> b (h p1) (w p2) c", h=height // p, p1=p, p2=p)


def squared_error(
    image: Float[Array, "b height width c"], clean: Float[Array, "b height width c"]
) -> Float[Array, " b"]:
    """Mean squared error of every image."""
    return jnp.mean(jnp.square(at_least_float32(image) - clean), axis=(1, 2, 3))
