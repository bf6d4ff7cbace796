"""Hourglass Transformer: most layers run on a shortened sequence (https://arxiv.org/abs/2110.13711).

Parameter names and shapes are those of hourglass-transformer-pytorch 0.0.6: its state_dict loads here
unchanged. Classes that exist only to keep those names say so.

Shapes: b batch, n tokens, d model width, h heads, k head width, i/j query/key position, s shortening
factor, v vocabulary.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torch_reference.checks import (
    require_bools,
    require_choice,
    require_integer,
    require_integers,
    require_sequence,
    require_shape,
    require_tokens,
)


Depth = int | tuple[int, "Depth", int]


class Attention(nn.Module):
    """Multi-head attention to `context`, by default to `x` itself."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b i d"],
        context: Float[Tensor, "b j d"] | None = None,
        mask: Bool[Tensor, "b j"] | None = None,
    ) -> Float[Tensor, "b i d"]:
        context = x if context is None else context
        q, k, v = self.to_q(x), *self.to_kv(context).chunk(2, dim=-1)  # b n (h k)
        q, k, v = (rearrange(t, "b n (h k) -> b h n k", h=self.heads) for t in (q, k, v))
        logits = torch.einsum("bhik,bhjk->bhij", q * q.shape[-1] ** -0.5, k)
        i, j = logits.shape[-2:]
        # Not -inf: a query whose keys are all masked gets the mean of the values. This is also why
        # F.scaled_dot_product_attention, which returns zeros there, cannot be used.
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -torch.finfo(logits.dtype).max)
        if self.causal:
            past = torch.ones(i, j, dtype=torch.bool, device=x.device).tril(j - i)
            logits = logits.masked_fill(~past, -torch.finfo(logits.dtype).max)
        weights = self.dropout(logits.softmax(dim=-1))
        out = torch.einsum("bhij,bhjk->bhik", weights, v)
        return self.to_out(rearrange(out, "b h i k -> b i (h k)"))


class FeedForward(nn.Sequential):
    """Two-layer MLP with the exact (erf) GELU. (Sequential: the package names its layers 0 and 3.)"""

    def __init__(self, dim: int, *, mult: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(dim, mult * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mult * dim, dim)
        )


class PreNorm(nn.Module):
    """`fn(norm(x))`; the context is not normalised. (A module: the package names its parts `norm` and `fn`.)"""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Float[Tensor, "b n d"], **kwargs: Any) -> Float[Tensor, "b n d"]:
        return self.fn(self.norm(x), **kwargs)


class Block(nn.ModuleList):
    """Pre-norm residual block: attention, then feed-forward. (ModuleList: the package names them 0 and 1.)"""

    def __init__(
        self,
        dim: int,
        *,
        causal: bool,
        heads: int,
        dim_head: int,
        attn_dropout: float,
        ff_mult: int,
        ff_dropout: float,
    ) -> None:
        attn = Attention(dim, heads=heads, dim_head=dim_head, dropout=attn_dropout, causal=causal)
        ff = FeedForward(dim, mult=ff_mult, dropout=ff_dropout)
        super().__init__([PreNorm(dim, attn), PreNorm(dim, ff)])

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b j d"] | None = None,
        mask: Bool[Tensor, "b j"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        attn, ff = self
        x = x + attn(x, context=context, mask=mask)
        return x + ff(x)


class Transformer(nn.Module):
    """A stack of blocks at one resolution, optionally with a final norm."""

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        causal: bool = False,
        heads: int = 8,
        dim_head: int = 64,
        attn_dropout: float = 0.0,
        ff_mult: int = 4,
        ff_dropout: float = 0.0,
        norm_out: bool = False,
    ) -> None:
        super().__init__()
        require_integers(1, dim=dim, heads=heads, dim_head=dim_head, ff_mult=ff_mult)
        require_integer("depth", depth, minimum=0)
        require_bools(causal=causal, norm_out=norm_out)
        self.layers = nn.ModuleList(
            Block(
                dim,
                causal=causal,
                heads=heads,
                dim_head=dim_head,
                attn_dropout=attn_dropout,
                ff_mult=ff_mult,
                ff_dropout=ff_dropout,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim) if norm_out else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b j d"] | None = None,
        mask: Bool[Tensor, "b j"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`mask` is True at the keys that queries may attend to; masked positions still get an output."""
        for block in self.layers:
            x = block(x, context=context, mask=mask)
        return self.norm(x)


class Downsample(nn.Module):
    """Replaces every s consecutive positions by one: their mean, or a linear map of all of them."""

    def __init__(self, dim: int, shorten_factor: int, *, linear: bool) -> None:
        super().__init__()
        self.shorten_factor = shorten_factor
        self.proj = nn.Linear(shorten_factor * dim, dim) if linear else None

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n//{self.shorten_factor} d"]:
        buckets = rearrange(x, "b (n s) d -> b n s d", s=self.shorten_factor)
        if self.proj is None:
            return buckets.mean(dim=2)
        return self.proj(rearrange(buckets, "b n s d -> b n (s d)"))


class Upsample(nn.Module):
    """Replaces every position by s: copies of it, or s linear maps of it."""

    def __init__(self, dim: int, shorten_factor: int, *, linear: bool) -> None:
        super().__init__()
        self.shorten_factor = shorten_factor
        self.proj = nn.Linear(dim, shorten_factor * dim) if linear else None

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n*{self.shorten_factor} d"]:
        if self.proj is None:
            return repeat(x, "b n d -> b (n s) d", s=self.shorten_factor)
        return rearrange(self.proj(x), "b n (s d) -> b (n s) d", s=self.shorten_factor)


class HourglassTransformer(nn.Module):
    """Layers at full length, layers at shortened length (the valley), and layers at full length again."""

    def __init__(
        self,
        dim: int,
        *,
        depth: tuple[int, Depth, int],
        shorten_factor: int | tuple[int, ...] = 2,
        attn_resampling: bool = True,
        updown_sample_type: str = "naive",
        heads: int = 8,
        dim_head: int = 64,
        causal: bool = False,
        norm_out: bool = False,
    ) -> None:
        super().__init__()
        require_integer("dim", dim, minimum=1)
        depths = as_depth(depth)
        if isinstance(depths, int):
            raise ValueError(f"depth must be (pre, valley, post); got depth={depth!r}")
        factor, *inner_factors = as_factors(shorten_factor, count_levels(depths))
        require_choice("updown_sample_type", updown_sample_type, ("naive", "linear"))
        require_bools(attn_resampling=attn_resampling, causal=causal, norm_out=norm_out)
        pre_depth, valley_depth, post_depth = depths
        linear = updown_sample_type == "linear"
        transformer = partial(Transformer, dim, heads=heads, dim_head=dim_head)

        self.dim = dim
        self.causal = causal
        self.shorten_factor = factor
        self.downsample = Downsample(dim, factor, linear=linear)
        self.upsample = Upsample(dim, factor, linear=linear)
        self.valley_transformer = build_transformer(
            dim,
            depth=valley_depth,
            shorten_factor=tuple(inner_factors),
            attn_resampling=attn_resampling,
            updown_sample_type=updown_sample_type,
            heads=heads,
            dim_head=dim_head,
            causal=causal,
        )
        self.attn_resampling_pre_valley = transformer(depth=1) if attn_resampling else None
        self.attn_resampling_post_valley = transformer(depth=1) if attn_resampling else None
        self.pre_transformer = transformer(depth=pre_depth, causal=causal)
        self.post_transformer = transformer(depth=post_depth, causal=causal)
        self.norm_out = nn.LayerNorm(dim) if norm_out else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """`mask` is True at the positions that others may attend to; see `jaxmodels.HourglassTransformer`."""
        require_shape("x", x, ("b", "n", self.dim))
        require_sequence("x", x, mask)
        s, n = self.shorten_factor, x.shape[1]

        x = self.pre_transformer(x, mask=mask)

        x = F.pad(x, (0, 0, 0, -n % s))
        padded_mask = None if mask is None else F.pad(mask, (0, -n % s), value=False)
        residual = x
        if self.causal:  # shifted, so that no bucket holds positions after the first it is added to
            x = F.pad(x, (0, 0, s - 1, 1 - s))
            padded_mask = None if padded_mask is None else F.pad(padded_mask, (s - 1, 1 - s), value=False)

        down = self.downsample(x)
        bucket_mask = None if padded_mask is None else rearrange(padded_mask, "b (n s) -> b n s", s=s)
        if self.attn_resampling_pre_valley is not None:
            resampled = self.attn_resampling_pre_valley(
                rearrange(down, "b n d -> (b n) 1 d"),
                context=rearrange(x, "b (n s) d -> (b n) s d", s=s),
                mask=None if bucket_mask is None else rearrange(bucket_mask, "b n s -> (b n) s"),
            )
            down = rearrange(resampled, "(b n) 1 d -> b n d", n=down.shape[1])

        valley = self.valley_transformer(down, mask=None if bucket_mask is None else bucket_mask.any(dim=-1))

        x = self.upsample(valley) + residual
        if self.attn_resampling_post_valley is not None:
            resampled = self.attn_resampling_post_valley(
                rearrange(x, "b (n s) d -> (b n) s d", s=s),
                context=rearrange(valley, "b n d -> (b n) 1 d"),
            )
            x = rearrange(resampled, "(b n) s d -> b (n s) d", n=valley.shape[1])

        x = self.post_transformer(x[:, :n], mask=mask)
        return self.norm_out(x)


class HourglassTransformerLM(nn.Module):
    """A language model: token and position embeddings, an hourglass (for integer depth a transformer), logits."""

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        max_seq_len: int,
        depth: Depth,
        shorten_factor: int | tuple[int, ...] | None = None,
        heads: int = 8,
        dim_head: int = 64,
        attn_resampling: bool = True,
        updown_sample_type: str = "naive",
        causal: bool = True,
    ) -> None:
        super().__init__()
        require_integers(1, num_tokens=num_tokens, dim=dim)
        self.max_seq_len = require_integer("max_seq_len", max_seq_len, minimum=1)
        require_choice("updown_sample_type", updown_sample_type, ("naive", "linear"))
        require_bools(attn_resampling=attn_resampling, causal=causal)
        depth = as_depth(depth)
        shorten_factor = as_factors(shorten_factor, count_levels(depth))

        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = nn.Embedding(max_seq_len, dim)
        self.transformer = build_transformer(
            dim,
            depth=depth,
            shorten_factor=shorten_factor,
            attn_resampling=attn_resampling,
            updown_sample_type=updown_sample_type,
            heads=heads,
            dim_head=dim_head,
            causal=causal,
            norm_out=True,
        )
        self.to_logits = nn.Linear(dim, num_tokens)

    def forward(
        self, x: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n v"]:
        """`x` are token ids; `mask` is True at the positions that others may attend to."""
        return self.to_logits(self.features(x, mask))

    def features(
        self, x: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The final activations, from which the logits are computed."""
        require_tokens("x", x)
        require_sequence("x", x, mask)
        n = x.shape[1]
        if n > self.max_seq_len:
            raise ValueError(f"x must have at most max_seq_len={self.max_seq_len} tokens; got {n}")
        hidden = self.token_emb(x) + self.pos_emb(torch.arange(n, device=x.device))
        return self.transformer(hidden, mask=mask)


def build_transformer(
    dim: int,
    *,
    depth: Depth,
    shorten_factor: tuple[int, ...],
    attn_resampling: bool,
    updown_sample_type: str,
    **layers: Any,
) -> Transformer | HourglassTransformer:
    """A transformer for an integer depth, an hourglass for a triple."""
    if isinstance(depth, int):
        return Transformer(dim, depth=depth, **layers)
    return HourglassTransformer(
        dim,
        depth=depth,
        shorten_factor=shorten_factor,
        attn_resampling=attn_resampling,
        updown_sample_type=updown_sample_type,
        **layers,
    )


def as_depth(depth: Any) -> Depth:
    """Returns `depth` with tuples for lists; ValueError unless it is an integer ≥ 0 or (integer, depth, integer)."""
    if not isinstance(depth, list | tuple):
        return require_integer("depth", depth, minimum=0)
    if len(depth) != 3:
        raise ValueError(f"depth must be an integer or (pre, valley, post); got depth={depth!r}")
    pre, valley, post = depth
    return (
        require_integer("depth before the valley", pre, minimum=0),
        as_depth(valley),
        require_integer("depth after the valley", post, minimum=0),
    )


def count_levels(depth: Depth) -> int:
    """How many hourglasses are nested in one another."""
    return 0 if isinstance(depth, int) else 1 + count_levels(depth[1])


def as_factors(shorten_factor: Any, levels: int) -> tuple[int, ...]:
    """One shortening factor per hourglass level, outermost first."""
    if levels == 0:
        if shorten_factor is not None and shorten_factor not in (0, (), []):
            raise ValueError(
                f"shorten_factor must be None when depth is an integer; got shorten_factor={shorten_factor!r}"
            )
        return ()
    if not isinstance(shorten_factor, list | tuple):
        return (require_integer("shorten_factor", shorten_factor, minimum=1),) * levels
    if len(shorten_factor) != levels:
        raise ValueError(
            f"shorten_factor must have one entry per hourglass level, {levels} for this depth; "
            f"got shorten_factor={shorten_factor!r}"
        )
    return tuple(require_integer("shorten_factor", factor, minimum=1) for factor in shorten_factor)
