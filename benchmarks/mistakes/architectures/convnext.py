"""ConvNeXt: depthwise convolutions, layer norms of channels, a scale for each branch, mean pooling."""

import jax
import torch
from flax import nnx
from torch.nn import functional as F

from benchmarks.mistakes.architectures.common import (
    CHANNELS_LAST,
    images,
    labelled,
    labels_for,
    parameter,
    random_weights,
)
from benchmarks.mistakes.pieces import Conv, LayerNorm, Linear, Piece, activate, add
from jaxmodels.compare import Pair


SIZE, CLASSES = 16, 5


class TorchBlock(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = torch.nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.norm = torch.nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = torch.nn.Linear(dim, 4 * dim), torch.nn.Linear(4 * dim, dim)
        self.gamma = torch.nn.Parameter(0.5 + torch.rand(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class TorchConvNeXt(torch.nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, dim, 4, stride=4)
        self.stem_norm = torch.nn.LayerNorm(dim, eps=1e-6)
        self.blocks = torch.nn.ModuleList(TorchBlock(dim) for _ in range(depth))
        self.downsample = torch.nn.Conv2d(dim, 2 * dim, 2, stride=2)
        self.norm, self.head = torch.nn.LayerNorm(2 * dim, eps=1e-6), torch.nn.Linear(2 * dim, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem_norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.downsample(x).mean([-2, -1])))


class Block(Piece):
    def __init__(self, dim: int) -> None:
        self.dwconv, self.norm = Conv(dim, dim, 5, padding=2, groups=dim), LayerNorm(dim, epsilon=1e-6)
        self.pwconv1, self.pwconv2 = Linear(dim, 4 * dim), Linear(4 * dim, dim)
        self.gamma = parameter(dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.pwconv2(activate(self, self.pwconv1(self.norm(self.dwconv(x))), "gelu"))
        return add(self, x, y if self.has("layer scale left out") else self.gamma[...] * y)


class ConvNeXt(Piece):
    def __init__(self, dim: int, depth: int) -> None:
        self.stem, self.stem_norm = Conv(3, dim, 4, stride=4), LayerNorm(dim, epsilon=1e-6)
        self.blocks = nnx.List(Block(dim) for _ in range(depth))
        self.downsample = Conv(dim, 2 * dim, 2, stride=2)
        self.norm, self.head = LayerNorm(2 * dim, epsilon=1e-6), Linear(2 * dim, CLASSES)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem_norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = self.downsample(x)
        if self.has("maximum for the mean"):
            x = x.max(axis=(1, 2))
        elif self.has("sum for the mean"):
            x = x.sum(axis=(1, 2))
        else:
            x = x.mean(axis=(1, 2))
        return self.head(self.norm(x))


def build(seed: int, size: int) -> Pair:
    """(b, 3, 16, 16) images -> (b, 5) logits."""
    dim, batch = 4 * (2 + size), 3 + size
    theirs = random_weights(TorchConvNeXt(dim, 2), seed)
    inputs = {"x": images(seed, batch, SIZE), "labels": labels_for(seed, batch, classes=CLASSES)}
    return labelled(ConvNeXt(dim, 2), theirs, inputs, **CHANNELS_LAST)
