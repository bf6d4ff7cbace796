"""ResNet: strided and grouped convolutions, batch norms, max pooling, projected shortcuts, features flattened."""

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
from benchmarks.mistakes.pieces import BatchNorm, Conv, Linear, Piece, activate, add
from jaxmodels.compare import Pair


SIZE, CLASSES = 16, 5


class TorchBlock(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, padding=1, groups=2, bias=False)
        self.bn1, self.bn2 = torch.nn.BatchNorm2d(outputs), torch.nn.BatchNorm2d(outputs)
        self.shortcut = torch.nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(y)))


class TorchResNet(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, dim, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(dim)
        self.blocks = torch.nn.ModuleList([TorchBlock(dim, 2 * dim, 2), TorchBlock(2 * dim, 2 * dim, 1)])
        self.fc = torch.nn.Linear(2 * dim * 4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


class Block(Piece):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        self.conv1 = Conv(inputs, outputs, 3, stride=stride, padding=1, use_bias=False)
        self.conv2 = Conv(outputs, outputs, 3, padding=1, groups=2, use_bias=False)
        self.bn1, self.bn2 = BatchNorm(outputs), BatchNorm(outputs)
        self.shortcut = Conv(inputs, outputs, 1, stride=stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = activate(self, self.bn1(self.conv1(x)), "relu")
        y = add(self, self.shortcut(x), self.bn2(self.conv2(y)))
        return y if self.has("last activation of a block left out") else jax.nn.relu(y)


class ResNet(Piece):
    def __init__(self, dim: int) -> None:
        self.conv1, self.bn1 = Conv(3, dim, 3, padding=1, use_bias=False), BatchNorm(dim)
        self.blocks = nnx.List([Block(dim, 2 * dim, 2), Block(2 * dim, 2 * dim, 1)])
        self.fc = Linear(2 * dim * 4, CLASSES)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        same = self.has('max pooling padded by "SAME"')
        if self.has("mean for maximum pooling"):
            x = nnx.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        else:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME" if same else ((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        pool = nnx.max_pool if self.has("maximum for mean pooling") else nnx.avg_pool
        x = pool(x, (2, 2), (2, 2))
        if not self.has("features flattened with channels last"):
            x = jnp.moveaxis(x, -1, 1)
        return self.fc(x.reshape(len(x), -1))


def build(seed: int, size: int) -> Pair:
    """(b, 3, 16, 16) images -> (b, 5) logits."""
    dim, batch = 4 * (1 + size), 3 + size
    theirs = random_weights(TorchResNet(dim), seed)
    inputs = {"x": images(seed, batch, SIZE), "labels": labels_for(seed, batch, classes=CLASSES)}
    return labelled(ResNet(dim), theirs, inputs, **CHANNELS_LAST)
