"""T5's encoder: RMS norms, relative positions as a bias, unscaled attention, a gated feed-forward layer."""

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch.nn import functional as F

from benchmarks.mistakes.architectures.common import labelled, labels_for, random_weights, tokens
from benchmarks.mistakes.pieces import (
    Embed,
    Linear,
    Piece,
    RMSNorm,
    activate,
    add,
    attend,
    merge_heads,
    pool_tokens,
    split_heads,
)
from jaxmodels.compare import Pair


VOCABULARY, LENGTH, HEADS, CLASSES, REACH = 30, 6, 2, 5, 4


class TorchAttention(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).permute(0, 2, 1, 3) for layer in (self.q, self.k, self.v)
        )
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) + bias).softmax(dim=-1)
        return self.o(torch.einsum("bhij,bhjd->bihd", weights, v).flatten(2))


class TorchBlock(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.RMSNorm(dim, eps=1e-6), torch.nn.RMSNorm(dim, eps=1e-6)
        self.attention = TorchAttention(dim)
        self.wi_0, self.wi_1 = (torch.nn.Linear(dim, 2 * dim, bias=False) for _ in range(2))
        self.wo = torch.nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), bias)
        y = self.norm2(x)
        return x + self.wo(F.gelu(self.wi_0(y), approximate="tanh") * self.wi_1(y))


class TorchT5(torch.nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.shared = torch.nn.Embedding(VOCABULARY, dim)
        self.relative = torch.nn.Embedding(2 * REACH + 1, HEADS)
        self.blocks = torch.nn.ModuleList(TorchBlock(dim) for _ in range(depth))
        self.norm, self.head = torch.nn.RMSNorm(dim, eps=1e-6), torch.nn.Linear(dim, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.shared(ids)
        places = torch.arange(ids.shape[1])
        distance = (places[None, :] - places[:, None]).clamp(-REACH, REACH) + REACH
        bias = self.relative(distance).permute(2, 0, 1)[None]
        for block in self.blocks:
            x = block(x, bias)
        return self.head(self.norm(x).mean(dim=1))


class Attention(Piece):
    def __init__(self, dim: int) -> None:
        self.q, self.k, self.v, self.o = (Linear(dim, dim, use_bias=False) for _ in range(4))

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        q, k, v = (split_heads(self, layer(x), HEADS) for layer in (self.q, self.k, self.v))
        return self.o(merge_heads(self, attend(self, q, k, v, bias=bias, scaled=False)))


class Block(Piece):
    def __init__(self, dim: int) -> None:
        self.norm1, self.norm2, self.attention = RMSNorm(dim), RMSNorm(dim), Attention(dim)
        self.wi_0, self.wi_1 = (Linear(dim, 2 * dim, use_bias=False) for _ in range(2))
        self.wo = Linear(2 * dim, dim, use_bias=False)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        x = add(self, x, self.attention(self.norm1(x), bias))
        y = self.norm2(x)
        gate, value = self.wi_0(y), self.wi_1(y)
        if self.has("gate and value exchanged"):
            gate, value = value, gate
        y = activate(self, gate, "gelu tanh")
        return add(self, x, self.wo(y if self.has("value of a gated unit left out") else y * value))


class T5(Piece):
    def __init__(self, dim: int, depth: int) -> None:
        self.shared, self.relative = Embed(VOCABULARY, dim), Embed(2 * REACH + 1, HEADS)
        self.blocks = nnx.List(Block(dim) for _ in range(depth))
        self.norm, self.head = RMSNorm(dim), Linear(dim, CLASSES)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.shared(ids)
        places = jnp.arange(ids.shape[1])
        distance = places[None, :] - places[:, None]
        if self.has("relative positions with the other sign"):
            distance = -distance
        bias = self.relative(jnp.clip(distance, -REACH, REACH) + REACH).transpose(2, 0, 1)[None]
        for block in self.blocks:
            x = block(x, bias)
        return self.head(pool_tokens(self, self.norm(x), "mean"))


def build(seed: int, size: int) -> Pair:
    """(b, 6) indices -> (b, 5) logits."""
    dim, batch = 8 * (2 + size), 3 + size
    theirs = random_weights(TorchT5(dim, 2), seed)
    ids = tokens(seed, batch, LENGTH, vocabulary=VOCABULARY)
    return labelled(T5(dim, 2), theirs, {"ids": ids, "labels": labels_for(seed, batch, classes=CLASSES)})
