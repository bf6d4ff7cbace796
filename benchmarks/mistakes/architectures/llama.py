"""LLaMA: RMS norms, rotary positions, fewer heads of keys and values, SwiGLU."""

import jax
import jax.numpy as jnp
import numpy as np
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
    split_heads,
)
from jaxmodels.compare import Pair


VOCABULARY, LENGTH, HEADS, KEY_HEADS, DIM_HEAD = 30, 6, 4, 2, 8


def torch_rotary(x: torch.Tensor) -> torch.Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, DIM_HEAD, 2, dtype=x.dtype) / DIM_HEAD)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * frequencies[None]
    angles = torch.cat([angles, angles], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class TorchAttention(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(dim, HEADS * DIM_HEAD, bias=False)
        self.k_proj, self.v_proj = (torch.nn.Linear(dim, KEY_HEADS * DIM_HEAD, bias=False) for _ in range(2))
        self.o_proj = torch.nn.Linear(HEADS * DIM_HEAD, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, HEADS, DIM_HEAD).transpose(1, 2)
        k, v = (
            layer(x).view(b, n, KEY_HEADS, DIM_HEAD).transpose(1, 2) for layer in (self.k_proj, self.v_proj)
        )
        q, k = torch_rotary(q), torch_rotary(k)
        k, v = (part.repeat_interleave(HEADS // KEY_HEADS, dim=1) for part in (k, v))
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        scores = (q @ k.transpose(2, 3)) * DIM_HEAD**-0.5
        weights = torch.where(mask, scores, torch.finfo(scores.dtype).min).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


class TorchBlock(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input_norm, self.post_norm = torch.nn.RMSNorm(dim, eps=1e-6), torch.nn.RMSNorm(dim, eps=1e-6)
        self.attention = TorchAttention(dim)
        self.gate_up, self.down = (
            torch.nn.Linear(dim, 4 * dim, bias=False),
            torch.nn.Linear(2 * dim, dim, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.input_norm(x))
        gate, up = self.gate_up(self.post_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class TorchLlama(torch.nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, dim)
        self.layers = torch.nn.ModuleList(TorchBlock(dim) for _ in range(depth))
        self.norm, self.head = torch.nn.RMSNorm(dim, eps=1e-6), torch.nn.Linear(dim, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Attention(Piece):
    def __init__(self, dim: int) -> None:
        self.q_proj = Linear(dim, HEADS * DIM_HEAD, use_bias=False)
        self.k_proj, self.v_proj = (Linear(dim, KEY_HEADS * DIM_HEAD, use_bias=False) for _ in range(2))
        self.o_proj = Linear(HEADS * DIM_HEAD, dim, use_bias=False)

    def rotary(self, x: jax.Array) -> jax.Array:
        base = 500000.0 if self.has("rotary base of 500000") else 10000.0
        frequencies = base ** (-jnp.arange(0, DIM_HEAD, 2, dtype=x.dtype) / DIM_HEAD)
        first = 1 if self.has("rotary positions of the queries off by one") and x.shape[1] == HEADS else 0
        angles = jnp.arange(first, first + x.shape[-2], dtype=x.dtype)[:, None] * frequencies[None]
        if self.has("rotary turning the other way"):
            angles = -angles
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        if self.has("rotary pairs of neighbours"):
            a, b = x[..., 0::2], x[..., 1::2]
            return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def __call__(self, x: jax.Array) -> jax.Array:
        q = split_heads(self, self.q_proj(x), HEADS)
        k, v = (split_heads(self, layer(x), KEY_HEADS) for layer in (self.k_proj, self.v_proj))
        q = self.rotary(q)
        k = k if self.has("keys not rotated") else self.rotary(k)
        if self.has("heads of keys tiled"):
            k, v = (jnp.tile(part, (1, HEADS // KEY_HEADS, 1, 1)) for part in (k, v))
        else:
            k, v = (jnp.repeat(part, HEADS // KEY_HEADS, axis=1) for part in (k, v))
        keep = np.tril(np.ones((x.shape[1],) * 2, bool))
        return self.o_proj(merge_heads(self, attend(self, q, k, v, keep=keep)))


class Block(Piece):
    def __init__(self, dim: int) -> None:
        self.input_norm, self.post_norm, self.attention = RMSNorm(dim), RMSNorm(dim), Attention(dim)
        self.gate_up, self.down = Linear(dim, 4 * dim, use_bias=False), Linear(2 * dim, dim, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = add(self, x, self.attention(self.input_norm(x)))
        y = self.gate_up(self.post_norm(x))
        gate, up = (y[..., 0::2], y[..., 1::2]) if self.has("gate interleaved") else jnp.split(y, 2, axis=-1)
        if self.has("gate and value exchanged"):
            gate, up = up, gate
        return add(self, x, self.down(activate(self, gate, "silu") * up))


class Llama(Piece):
    def __init__(self, dim: int, depth: int) -> None:
        self.embed = Embed(VOCABULARY, dim)
        self.layers = nnx.List(Block(dim) for _ in range(depth))
        self.norm, self.head = RMSNorm(dim), Linear(dim, VOCABULARY, use_bias=False)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return logits / 0.7 if self.has("logits divided by a temperature") else logits


def build(seed: int, size: int) -> Pair:
    """(b, 6) indices -> (b, 6, 30) logits."""
    dim, batch = 8 * (2 + size), 2 + size
    theirs = random_weights(TorchLlama(dim, 2), seed)
    ids = tokens(seed, batch, LENGTH, vocabulary=VOCABULARY)
    inputs = {"ids": ids, "labels": labels_for(seed, batch, LENGTH, classes=VOCABULARY)}
    return labelled(Llama(dim, 2), theirs, inputs)
