"""GPT-2: pre-norm, one fused projection, a causal mask, the embedding tied to the head."""

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
    cut,
    merge_heads,
    split_heads,
)
from jaxmodels.compare import Pair


VOCABULARY, LENGTH, HEADS = 30, 6, 2


class TorchAttention(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, dim = x.shape
        q, k, v = (
            part.view(b, n, HEADS, dim // HEADS).transpose(1, 2) for part in self.c_attn(x).split(dim, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(b, n, dim))


class TorchBlock(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
        self.attn = TorchAttention(dim)
        self.c_fc, self.c_proj = torch.nn.Linear(dim, 4 * dim), torch.nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class TorchGPT2(torch.nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.wte, self.wpe = torch.nn.Embedding(VOCABULARY, dim), torch.nn.Embedding(LENGTH + 2, dim)
        self.h = torch.nn.ModuleList(TorchBlock(dim) for _ in range(depth))
        self.ln_f = torch.nn.LayerNorm(dim)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


class Attention(Piece):
    def __init__(self, dim: int) -> None:
        self.c_attn, self.c_proj = Linear(dim, 3 * dim), Linear(dim, dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (split_heads(self, part, HEADS) for part in cut(self, self.c_attn(x), HEADS))
        keep = np.tril(np.ones((x.shape[1],) * 2, bool))
        return self.c_proj(merge_heads(self, attend(self, q, k, v, keep=keep)))


class Block(Piece):
    def __init__(self, dim: int) -> None:
        self.ln_1, self.ln_2, self.attn = LayerNorm(dim), LayerNorm(dim), Attention(dim)
        self.c_fc, self.c_proj = Linear(dim, 4 * dim), Linear(4 * dim, dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.has("residual from the normalised input"):
            normal = self.ln_1(x)
            x = normal + self.attn(normal)
        else:
            x = add(self, x, self.attn(self.ln_1(x)))
        return add(self, x, self.c_proj(activate(self, self.c_fc(self.ln_2(x)), "gelu tanh")))


class GPT2(Piece):
    def __init__(self, dim: int, depth: int) -> None:
        self.wte, self.wpe = Embed(VOCABULARY, dim), Embed(LENGTH + 2, dim)
        self.h = nnx.List(Block(dim) for _ in range(depth))
        self.ln_f = LayerNorm(dim)

    def __call__(self, ids: jax.Array) -> jax.Array:
        first = 1 if self.has("positions off by one") else 0
        x = self.wte(ids)
        if not self.has("positions left out"):
            x = x + self.wpe(jnp.arange(first, first + ids.shape[1]))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if self.has("head scaled by the width"):
            x = x * x.shape[-1] ** -0.5
        table = self.wte.embedding[...]
        if self.has("gradient of a tied weight stopped"):
            table = jax.lax.stop_gradient(table)
        return x @ table.T


def build(seed: int, size: int) -> Pair:
    """(b, 6) indices -> (b, 6, 30) logits."""
    dim, batch = 8 * (2 + size), 2 + size
    theirs = random_weights(TorchGPT2(dim, 2), seed)
    ids = tokens(seed, batch, LENGTH, vocabulary=VOCABULARY)
    inputs = {"ids": ids, "labels": labels_for(seed, batch, LENGTH, classes=VOCABULARY)}
    return labelled(GPT2(dim, 2), theirs, inputs)
