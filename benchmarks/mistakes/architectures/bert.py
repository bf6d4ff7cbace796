"""BERT: post-norm, separate projections, a padding mask, the first token pooled."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.nn import functional as F

from benchmarks.mistakes.architectures.common import labelled, labels_for, random_weights, tokens
from benchmarks.mistakes.pieces import (
    Embed,
    LayerNorm,
    Linear,
    Piece,
    activate,
    add,
    attend,
    merge_heads,
    pool_tokens,
    split_heads,
)
from jaxmodels.compare import Pair


VOCABULARY, LENGTH, HEADS, CLASSES = 40, 7, 4, 5


class TorchAttention(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(dim, dim) for _ in range(3))
        self.dense = torch.nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, n, dim = x.shape
        q, k, v = (
            layer(x).view(b, n, HEADS, dim // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(dim // HEADS)
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        context = torch.matmul(F.softmax(scores, dim=-1), v)
        return self.dense(context.transpose(1, 2).reshape(b, n, dim))


class TorchLayer(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = TorchAttention(dim)
        self.norm1, self.norm2 = (torch.nn.LayerNorm(dim, eps=1e-12) for _ in range(2))
        self.up, self.down = torch.nn.Linear(dim, 2 * dim), torch.nn.Linear(2 * dim, dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class TorchBERT(torch.nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.words, self.positions = torch.nn.Embedding(VOCABULARY, dim), torch.nn.Embedding(LENGTH + 2, dim)
        self.types = torch.nn.Embedding(2, dim)
        self.norm = torch.nn.LayerNorm(dim, eps=1e-12)
        self.layers = torch.nn.ModuleList(TorchLayer(dim) for _ in range(depth))
        self.pooler, self.head = torch.nn.Linear(dim, dim), torch.nn.Linear(dim, CLASSES)

    def forward(self, ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1])
        x = self.words(ids) + self.positions(positions) + self.types(types)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class Attention(Piece):
    def __init__(self, dim: int) -> None:
        self.query, self.key, self.value, self.dense = (Linear(dim, dim) for _ in range(4))

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        q, k, v = (split_heads(self, layer(x), HEADS) for layer in (self.query, self.key, self.value))
        return self.dense(merge_heads(self, attend(self, q, k, v, keep=mask[:, None, None])))


class Layer(Piece):
    def __init__(self, dim: int) -> None:
        self.attention = Attention(dim)
        self.norm1, self.norm2 = (LayerNorm(dim, epsilon=1e-12) for _ in range(2))
        self.up, self.down = Linear(dim, 2 * dim), Linear(2 * dim, dim)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        if self.has("norm before the branch"):
            x = add(self, x, self.attention(self.norm1(x), mask))
            return add(self, x, self.down(activate(self, self.up(self.norm2(x)), "gelu")))
        x = self.norm1(add(self, x, self.attention(x, mask)))
        return self.norm2(add(self, x, self.down(activate(self, self.up(x), "gelu"))))


class BERT(Piece):
    def __init__(self, dim: int, depth: int) -> None:
        self.words, self.positions, self.types = Embed(VOCABULARY, dim), Embed(LENGTH + 2, dim), Embed(2, dim)
        self.norm = LayerNorm(dim, epsilon=1e-12)
        self.layers = nnx.List(Layer(dim) for _ in range(depth))
        self.pooler, self.head = Linear(dim, dim), Linear(dim, CLASSES)

    def __call__(self, ids: jax.Array, types: jax.Array, mask: jax.Array) -> jax.Array:
        first = 1 if self.has("positions off by one") else 0
        x = self.words(ids)
        if not self.has("positions left out"):
            x = x + self.positions(jnp.arange(first, first + ids.shape[1]))
        if not self.has("token types left out"):
            x = x + self.types(types)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        pooled = self.pooler(pool_tokens(self, x, "first"))
        return self.head(pooled if self.has("activation left out") else jnp.tanh(pooled))


def build(seed: int, size: int) -> Pair:
    """(b, 7) indices, types and a mask of what is no padding -> (b, 5) logits."""
    dim, batch = 8 * (2 + size), 3 + size
    theirs = random_weights(TorchBERT(dim, 2), seed)
    mask = np.arange(LENGTH)[None] < np.array([LENGTH, *[LENGTH - 2 - i for i in range(batch - 1)]])[:, None]
    inputs = {
        "ids": tokens(seed, batch, LENGTH, vocabulary=VOCABULARY),
        "types": tokens(seed + 1, batch, LENGTH, vocabulary=2),
        "mask": mask,
        "labels": labels_for(seed, batch, classes=CLASSES),
    }
    return labelled(BERT(dim, 2), theirs, inputs)
