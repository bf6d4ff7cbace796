"""Flax layers and functions with a switch for every mistake that can be made in them.

A piece is a module that holds the name of one mistake, or none. Wherever its code can make a mistake it asks `has`,
which also notes that the mistake can be made there. So a run of a model tells where a mistake applies, and planting it
is to name it at one of these pieces.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax


# Where a mistake that was asked for can be made: (mistake, the module's path), in the order of execution.
asked: list[tuple[str, str]] = []


class Piece(nnx.Module):
    """A module with a mistake, or without one.

    Attributes:
      mistake: the name of the mistake; "" where there is none.
      path: its dotted path in the model; "" is the model.
    """

    mistake: str = ""
    path: str = ""

    def has(self, mistake: str) -> bool:
        asked.append((mistake, self.path))
        return self.mistake == mistake


class Linear(nnx.Linear, Piece):
    """A linear layer."""

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool = True) -> None:
        super().__init__(inputs, outputs, use_bias=use_bias, rngs=nnx.Rngs(0))

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        kernel = self.kernel[...]
        if self.in_features == self.out_features and self.has("linear kernel transposed"):
            kernel = kernel.T
        y = inputs @ kernel
        if self.bias is None:
            return y
        if self.has("linear bias left out"):
            return y
        return y + self.bias[...] * (2 if self.has("linear bias added twice") else 1)


class _Norm(Piece):
    """What layer norm and RMS norm share."""

    centred: bool

    def normalise(self, x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
        if self.has("norm left out"):
            return x
        centred = self.centred != self.has(
            "RMS norm for layer norm" if self.centred else "layer norm for RMS norm"
        )
        axes = tuple(range(1, x.ndim)) if x.ndim > 2 and self.has("norm over tokens too") else -1
        if self.has("norm epsilon of Flax"):
            epsilon = 1e-6 if epsilon != 1e-6 else 1e-5
        if self.has("norm epsilon of 1e-3"):
            epsilon = 1e-3
        y = x - x.mean(axes, keepdims=True) if centred else x
        variance = (y * y).mean(axes, keepdims=True)
        if self.has("norm with unbiased variance"):
            variance = variance * x.shape[-1] / (x.shape[-1] - 1)
        outside = self.has("norm epsilon outside the root")
        y = y / (jnp.sqrt(variance) + epsilon if outside else jnp.sqrt(variance + epsilon))
        y = y * (scale + (1 if self.has("norm scale plus one") else 0))
        return y if bias is None or self.has("norm bias left out") else y + bias


class LayerNorm(nnx.LayerNorm, _Norm):
    """Layer norm with PyTorch's epsilon."""

    centred = True

    def __init__(self, size: int, *, epsilon: float = 1e-5) -> None:
        super().__init__(size, epsilon=epsilon, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, *, mask: Any = None) -> jax.Array:
        assert self.scale is not None
        assert self.bias is not None
        return self.normalise(x, self.scale[...], self.bias[...], self.epsilon)


class RMSNorm(nnx.RMSNorm, _Norm):
    """RMS norm."""

    centred = False

    def __init__(self, size: int, *, epsilon: float = 1e-6) -> None:
        super().__init__(size, epsilon=epsilon, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, mask: Any = None) -> jax.Array:
        assert self.scale is not None
        return self.normalise(x, self.scale[...], None, self.epsilon)


class GroupNorm(nnx.GroupNorm, Piece):
    """Group norm of channels-last images."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, groups, epsilon=1e-5, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, *, mask: Any = None) -> jax.Array:
        assert self.scale is not None
        assert self.bias is not None
        if self.has("norm left out"):
            return x
        groups = 1 if self.has("group norm with one group") else self.num_groups
        strided = self.has("group norm of every n-th channel")
        parts = x.reshape(*x.shape[:-1], *((-1, groups) if strided else (groups, -1)))
        axes = (1, 2, 3) if strided else (1, 2, 4)
        epsilon = 1e-6 if self.has("norm epsilon of Flax") else self.epsilon
        centred = parts - parts.mean(axes, keepdims=True)
        normal = centred / jnp.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)
        return normal.reshape(x.shape) * self.scale[...] + self.bias[...]


class BatchNorm(nnx.BatchNorm, Piece):
    """Batch norm in evaluation mode."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, epsilon=1e-5, momentum=0.9, use_running_average=True, rngs=nnx.Rngs(0))

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: Any = None
    ) -> jax.Array:
        assert self.scale is not None
        assert self.bias is not None
        mean, variance, epsilon = self.mean[...], self.var[...], self.epsilon
        if self.has("batch norm with the batch's statistics"):
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        if self.has("norm epsilon of 1e-3"):
            epsilon = 1e-3
        if self.has("norm left out"):
            return x
        scale = jnp.ones_like(self.scale[...]) if self.has("norm weight left out") else self.scale[...]
        y = (x - mean) / jnp.sqrt(variance + epsilon) * scale
        return y if self.has("norm bias left out") else y + self.bias[...]


class Conv(nnx.Conv, Piece):
    """A convolution of channels-last images, with PyTorch's padding."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int = 1, padding: int = 0, dilation: int = 1,
        groups: int = 1, use_bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            inputs, outputs, (size, size), strides=stride, padding=padding, kernel_dilation=dilation,
            feature_group_count=groups, use_bias=use_bias, rngs=nnx.Rngs(0),
        )  # fmt: skip
        self.numbers = stride, padding, dilation, groups

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        x = inputs
        stride, padding, dilation, groups = self.numbers
        kernel = self.kernel[...]
        size = kernel.shape[0]
        pads: Any = ((padding, padding),) * 2
        around: Any = ((0, 0), *pads, (0, 0))
        if size > 1:
            if stride > 1 and self.has('convolution padded by "SAME"'):
                pads = "SAME"
            if padding and self.has("convolution padded at the beginning alone"):
                pads = ((2 * padding, 0),) * 2
            if self.has("convolution kernel flipped"):
                kernel = kernel[::-1, ::-1]
            if self.has("convolution kernel with height and width exchanged"):
                kernel = kernel.transpose(1, 0, 2, 3)
            if padding and self.has("convolution padded by reflection"):
                x = jnp.pad(x, around, mode="reflect")
                pads = "VALID"
            if padding and self.has("convolution padded circularly"):
                x = jnp.pad(x, around, mode="wrap")
                pads = "VALID"
        if kernel.shape[2] == kernel.shape[3] > 1 and self.has("convolution channels exchanged"):
            kernel = kernel.transpose(0, 1, 3, 2)
        if dilation > 1 and self.has("dilation left out"):
            dilation, pads = 1, ((size // 2, size // 2),) * 2
        y = lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation), feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        if 1 < groups < y.shape[-1] and self.has("grouped outputs channel first"):
            y = y.reshape(*y.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(y.shape)
        if self.bias is None or self.has("convolution bias left out"):
            return y
        return y + self.bias[...]


class ConvTranspose(nnx.ConvTranspose, Piece):
    """A transposed convolution with 3 × 3 pixels that doubles height and width, as PyTorch with padding of 1 each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 3), strides=(2, 2), padding=((1, 2), (1, 2)), rngs=nnx.Rngs(0))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel: jax.Array = self.kernel[...]
        pads: Any = ((1, 2), (1, 2))
        if self.has("transposed kernel not flipped"):
            kernel = kernel[::-1, ::-1]
        if self.has('transposed convolution padded by "SAME"'):
            pads = "SAME"
        y = lax.conv_transpose(inputs, kernel, (2, 2), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        assert self.bias is not None
        return y if self.has("convolution bias left out") else y + self.bias[...]


class Embed(nnx.Embed, Piece):
    """A table of vectors."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count, size, rngs=nnx.Rngs(0))

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        table = self.embedding[...]
        if self.has("embedding scaled"):
            table = table * self.features**0.5
        if self.has("first row of the embedding zero"):
            table = table.at[0].set(0)
        if self.has("indices off by one"):
            inputs = jnp.clip(inputs + 1, 0, self.num_embeddings - 1)
        return table[inputs]


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "leaky": lambda x: jax.nn.leaky_relu(x, 0.2),
    "softplus": jax.nn.softplus,
}


def activate(piece: Piece, x: jax.Array, name: str) -> jax.Array:
    """An activation, or another one."""
    if name == "gelu" and piece.has("tanh GELU"):
        name = "gelu tanh"
    elif name == "gelu tanh" and piece.has("exact GELU"):
        name = "gelu"
    elif name.startswith("gelu") and piece.has("sigmoid GELU"):
        return x * jax.nn.sigmoid(1.702 * x)
    elif name != "relu" and piece.has("ReLU for another activation"):
        name = "relu"
    elif name != "silu" and piece.has("SiLU for another activation"):
        name = "silu"
    elif name == "leaky" and piece.has("slope of Flax's leaky ReLU"):
        return jax.nn.leaky_relu(x)
    elif piece.has("activation left out"):
        return x
    return ACTIVATIONS[name](x)


def add(piece: Piece, x: jax.Array, branch: jax.Array) -> jax.Array:
    """A residual connection."""
    if piece.has("residual left out"):
        return branch
    if piece.has("residual added twice"):
        return 2 * x + branch
    if piece.has("branch subtracted"):
        return x - branch
    if piece.has("gradient of a branch stopped"):
        return x + lax.stop_gradient(branch)
    return x + branch


def split_heads(piece: Piece, x: jax.Array, heads: int) -> jax.Array:
    """(b n (h d)) -> (b h n d)."""
    b, n, width = x.shape
    if piece.has("heads split as (dim, head)"):
        return x.reshape(b, n, width // heads, heads).transpose(0, 3, 1, 2)
    if n == heads and piece.has("heads not transposed"):
        return x.reshape(b, heads, n, width // heads)
    return x.reshape(b, n, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(piece: Piece, x: jax.Array) -> jax.Array:
    """(b h n d) -> (b n (h d))."""
    b, h, n, d = x.shape
    if piece.has("heads merged as (dim, head)"):
        return x.transpose(0, 2, 3, 1).reshape(b, n, h * d)
    if piece.has("heads merged without a transpose"):
        return x.reshape(b, n, h * d)
    return x.transpose(0, 2, 1, 3).reshape(b, n, h * d)


def attend(
    piece: Piece,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    keep: jax.Array | np.ndarray | None = None,
    bias: jax.Array | None = None,
    scaled: bool = True,
) -> jax.Array:
    """Attention of (b h n d); `keep` is True where a query may see a key."""
    scores = q @ k.swapaxes(-1, -2)
    if scaled:
        scale = q.shape[-1] ** -0.5
        if piece.has("attention scale of the model's width"):
            scale = (q.shape[-1] * q.shape[1]) ** -0.5
        if piece.has("attention not scaled"):
            scale = 1.0
        if piece.has("attention scaled twice"):
            scale = scale**2
        scores = scores * scale
    elif piece.has("attention scaled where PyTorch does not"):
        scores = scores * q.shape[-1] ** -0.5
    if bias is not None and not piece.has("position bias left out"):
        scores = scores + bias
    if keep is not None and not piece.has("mask left out"):
        if piece.has("mask inverted"):
            keep = ~keep
        if keep.ndim == 2 and piece.has("mask transposed"):
            keep = keep.T
        if keep.ndim == 2 and piece.has("mask off by one"):
            keep = np.tril(np.ones_like(keep), 1)
        scores = jnp.where(keep, scores, jnp.finfo(scores.dtype).min)
    if piece.has("softmax over the queries"):
        return jax.nn.softmax(scores, axis=-2) @ v
    return jax.nn.softmax(scores, axis=-1) @ v


def cut(piece: Piece, x: jax.Array, heads: int) -> list[jax.Array]:
    """Queries, keys and values (b n (h d)) of one fused layer, (3 h d)."""
    if piece.has("fused weights cut as (head, 3, dim)"):
        b, n, width = x.shape
        parts = x.reshape(b, n, heads, 3, width // heads // 3)
        return [parts[..., i, :].reshape(b, n, width // 3) for i in range(3)]
    q, k, v = jnp.split(x, 3, axis=-1)
    if piece.has("keys and values exchanged"):
        return [q, v, k]
    return [k, q, v] if piece.has("queries and keys exchanged") else [q, k, v]


def pool_tokens(piece: Piece, x: jax.Array, kind: str) -> jax.Array:
    """One vector of (b n d): the first token, the last, or the mean."""
    if kind != "mean" and piece.has("mean of the tokens for one token"):
        kind = "mean"
    elif kind == "first" and piece.has("last token for the first"):
        kind = "last"
    elif kind == "mean" and piece.has("first token for the mean"):
        kind = "first"
    elif kind == "mean" and piece.has("maximum for the mean"):
        return x.max(axis=1)
    return {"first": lambda: x[:, 0], "last": lambda: x[:, -1], "mean": lambda: x.mean(axis=1)}[kind]()
