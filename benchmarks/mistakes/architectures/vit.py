"""ViT: patches by rearranging, a class token, learned positions, pre-norm, one fused projection."""

import jax
import jax.numpy as jnp
import torch
from einops import rearrange
from flax import nnx

from benchmarks.mistakes.architectures.common import (
    CHANNELS_LAST,
    images,
    labelled,
    labels_for,
    parameter,
    random_weights,
)
from benchmarks.mistakes.pieces import (
    LayerNorm,
    Linear,
    Piece,
    activate,
    add,
    attend,
    merge_heads,
    pool_tokens,
)
from jaxmodels.compare import Pair


SIZE, PATCH, HEADS, CLASSES = 8, 2, 4, 5


class TorchAttention(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_qkv, self.to_out = torch.nn.Linear(dim, 3 * dim, bias=False), torch.nn.Linear(dim, dim)
        self.scale = (dim // HEADS) ** -0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=HEADS)
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(dim=-1)
        return self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))


class TorchBlock(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
        self.attention = TorchAttention(dim)
        self.fc1, self.act, self.fc2 = (
            torch.nn.Linear(dim, 2 * dim),
            torch.nn.GELU(),
            torch.nn.Linear(2 * dim, dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class TorchViT(torch.nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.patches = torch.nn.Linear(3 * PATCH**2, dim)
        self.cls = torch.nn.Parameter(torch.randn(1, 1, dim))
        self.positions = torch.nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2 + 1, dim))
        self.blocks = torch.nn.ModuleList(TorchBlock(dim) for _ in range(depth))
        self.norm, self.head = torch.nn.LayerNorm(dim), torch.nn.Linear(dim, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = rearrange(x, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=PATCH, p2=PATCH)
        x = self.patches(x)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Attention(Piece):
    def __init__(self, dim: int) -> None:
        self.to_qkv, self.to_out = Linear(dim, 3 * dim, use_bias=False), Linear(dim, dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        orders = {
            "fused weights cut as (head, 3, dim)": "b n (h three d) -> three b h n d",
            "fused weights cut as (head, dim, 3)": "b n (h d three) -> three b h n d",
            "heads split as (dim, head)": "b n (three d h) -> three b h n d",
        }
        order = next((o for m, o in orders.items() if self.has(m)), "b n (three h d) -> three b h n d")
        q, k, v = rearrange(self.to_qkv(x), order, three=3, h=HEADS)
        if self.has("keys and values exchanged"):
            k, v = v, k
        return self.to_out(merge_heads(self, attend(self, q, k, v)))


class Block(Piece):
    def __init__(self, dim: int) -> None:
        self.norm1, self.norm2, self.attention = LayerNorm(dim), LayerNorm(dim), Attention(dim)
        self.fc1, self.fc2 = Linear(dim, 2 * dim), Linear(2 * dim, dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = add(self, x, self.attention(self.norm1(x)))
        return add(self, x, self.fc2(activate(self, self.fc1(self.norm2(x)), "gelu")))


class ViT(Piece):
    def __init__(self, dim: int, depth: int) -> None:
        self.patches = Linear(3 * PATCH**2, dim)
        self.cls, self.positions = parameter(1, 1, dim), parameter(1, (SIZE // PATCH) ** 2 + 1, dim)
        self.blocks = nnx.List(Block(dim) for _ in range(depth))
        self.norm, self.head = LayerNorm(dim), Linear(dim, CLASSES)

    def __call__(self, x: jax.Array) -> jax.Array:
        orders = {
            "patches with channels first": "b (h p1) (w p2) c -> b (h w) (c p1 p2)",
            "patches with rows and columns exchanged": "b (h p1) (w p2) c -> b (h w) (p2 p1 c)",
            "patches in columns": "b (h p1) (w p2) c -> b (w h) (p1 p2 c)",
        }
        order = next((o for m, o in orders.items() if self.has(m)), "b (h p1) (w p2) c -> b (h w) (p1 p2 c)")
        x = self.patches(rearrange(x, order, p1=PATCH, p2=PATCH))
        token = jnp.broadcast_to(self.cls[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([x, token] if self.has("class token at the end") else [token, x], axis=1)
        if not self.has("positions left out"):
            x = x + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(pool_tokens(self, self.norm(x), "first"))


def build(seed: int, size: int) -> Pair:
    """(b, 3, 8, 8) images -> (b, 5) logits."""
    dim, batch = 8 * (2 + size), 3 + size
    theirs = random_weights(TorchViT(dim, 2), seed)
    inputs = {"x": images(seed, batch, SIZE), "labels": labels_for(seed, batch, classes=CLASSES)}
    return labelled(ViT(dim, 2), theirs, inputs, **CHANNELS_LAST)
