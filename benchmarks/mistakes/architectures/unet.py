"""U-Net: group norms, a dilated convolution, padded pooling, a transposed convolution, a skip connection, a resize."""

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch.nn import functional as F

from benchmarks.mistakes.architectures.common import (
    CHANNELS_LAST,
    images,
    labelled,
    labels_for,
    random_weights,
)
from benchmarks.mistakes.pieces import Conv, ConvTranspose, GroupNorm, Piece, activate
from jaxmodels.compare import Pair


SIZE, CLASSES = 12, 5


class TorchBlock(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.norm = torch.nn.GroupNorm(2, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class TorchUNet(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down, self.middle = TorchBlock(3, dim), TorchBlock(dim, 2 * dim, dilation=2)
        self.up = torch.nn.ConvTranspose2d(2 * dim, dim, 3, stride=2, padding=1, output_padding=1)
        self.merge = TorchBlock(2 * dim, dim)
        self.head = torch.nn.Conv2d(dim, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        x = self.middle(F.avg_pool2d(skip, 3, stride=2, padding=1))
        x = self.merge(torch.cat([skip, self.up(x)], dim=1))
        x = F.interpolate(x, (5, 5), mode="bilinear", align_corners=False)
        return self.head(x).permute(0, 2, 3, 1)


class Block(Piece):
    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        self.conv = Conv(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.norm = GroupNorm(outputs, 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        return activate(self, self.norm(self.conv(x)), "leaky")


class UNet(Piece):
    def __init__(self, dim: int) -> None:
        self.down, self.middle = Block(3, dim), Block(dim, 2 * dim, dilation=2)
        self.up, self.merge = ConvTranspose(2 * dim, dim), Block(2 * dim, dim)
        self.head = Conv(dim, CLASSES, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        skip = self.down(x)
        counted = not self.has("pooling without its padding")
        if self.has("maximum for mean pooling"):
            x = nnx.max_pool(skip, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        elif self.has('mean pooling padded by "SAME"'):
            x = nnx.avg_pool(skip, (3, 3), (2, 2), padding="SAME")
        else:
            x = nnx.avg_pool(skip, (3, 3), (2, 2), padding=((1, 1), (1, 1)), count_include_pad=counted)
        up = self.up(self.middle(x))
        x = self.merge(
            jnp.concatenate([up, skip] if self.has("concatenation reversed") else [skip, up], axis=-1)
        )
        x = jax.image.resize(
            x,
            (len(x), 5, 5, x.shape[-1]),
            "nearest" if self.has("nearest for bilinear resizing") else "linear",
            antialias=self.has("resize with antialiasing"),
        )
        return self.head(x)


def build(seed: int, size: int) -> Pair:
    """(b, 3, 12, 12) images -> (b, 5, 5, 5) logits, channels last."""
    dim, batch = 4 * (1 + size), 2
    theirs = random_weights(TorchUNet(dim), seed)
    inputs = {"x": images(seed, batch, SIZE), "labels": labels_for(seed, batch, 5, 5, classes=CLASSES)}
    return labelled(UNet(dim), theirs, inputs, **CHANNELS_LAST)
