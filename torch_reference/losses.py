"""Losses of the five models: pure functions of outputs and labels, computed in float32 at least.

The JAX twin is `jaxmodels/losses.py`.

Shapes: b any leading axes, v vocabulary or classes, n image patches, z latent width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


# PyTorch's name for "no label is ignored": a number that cannot be a class.
NOTHING_IGNORED = -100


def cross_entropy(
    logits: Float[Tensor, "*b v"],
    labels: Int[Tensor, "*b"],
    *,
    ignored: int | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "*b"]:
    """Cross-entropy of every position in nats; 0 where the label is `ignored`, which need not be a class."""
    losses = F.cross_entropy(
        at_least_float32(logits).flatten(0, -2),
        labels.flatten().long(),
        ignore_index=NOTHING_IGNORED if ignored is None else ignored,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return losses.view(labels.shape)


def mean_cross_entropy(
    logits: Float[Tensor, "*b v"],
    labels: Int[Tensor, "*b"],
    *,
    ignored: int | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of `cross_entropy` over the positions that count; NaN where none does."""
    return F.cross_entropy(
        at_least_float32(logits).flatten(0, -2),
        labels.flatten().long(),
        ignore_index=NOTHING_IGNORED if ignored is None else ignored,
        label_smoothing=label_smoothing,
    )


def contrastive_loss(
    text: Float[Tensor, "b z"], image: Float[Tensor, "b z"], temperature: Float[Tensor, "1"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of finding each text's image and each image's text within the batch."""
    text, image, temperature = map(at_least_float32, (text, image, temperature))
    logits = torch.einsum("iz,jz->ij", text, image) * temperature.exp()
    pairs = torch.arange(len(logits), device=logits.device)
    return (mean_cross_entropy(logits, pairs) + mean_cross_entropy(logits.T, pairs)) / 2


def denoising_iters(levels: int) -> int:
    """The number of steps after which GLOM's top level is decoded: one more than it needs to see the image."""
    return levels + 1


def image_from_patches(
    patches: Float[Tensor, "b n pixels"], *, patch_size: int, height: int
) -> Float[Tensor, "b c height width"]:
    """Puts decoded patches, row by row of the image, in their places."""
    p = patch_size
    return rearrange(patches, "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", h=height // p, p1=p, p2=p)


def squared_error(
    image: Float[Tensor, "b c height width"], clean: Float[Tensor, "b c height width"]
) -> Float[Tensor, " b"]:
    """Mean squared error of every image."""
    return (at_least_float32(image) - clean).square().mean(dim=(1, 2, 3))


def at_least_float32(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """`x` in float32, or as it is where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
