"""Hourglass Transformer: most layers run on a shortened sequence (https://arxiv.org/abs/2110.13711).

The PyTorch twin is `torch_reference/hourglass.py`; the two files are meant to be read side by side.

Shapes: b batch, n tokens, d model width, h heads, k head width, i/j query/key position, s shortening
factor, v vocabulary.
"""

from dataclasses import replace
from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from jaxmodels.checks import require_floating, require_sequence, require_shape, require_tokens
from jaxmodels.models.hourglass_config import (
    HourglassTransformerConfig,
    HourglassTransformerLMConfig,
    as_factors,
    count_levels,
)
from jaxmodels.nn import (
    AttentionModule,
    Embed,
    LayerNorm,
    LayerOptions,
    Linear,
    Model,
    RematModule,
    attend,
    gelu,
    rematerialized,
)


class Attention(AttentionModule):
    """Multi-head attention to `context`, by default to `x` itself."""

    def __init__(
        self, dim: int, *, heads: int, dim_head: int, causal: bool, **layer: Unpack[LayerOptions]
    ) -> None:
        self.heads = heads
        self.causal = causal
        self.to_q = Linear(dim, heads * dim_head, use_bias=False, **layer)
        self.to_kv = Linear(dim, 2 * heads * dim_head, use_bias=False, **layer)
        self.to_out = Linear(heads * dim_head, dim, **layer)

    def __call__(
        self,
        x: Float[Array, "b i d"],
        context: Float[Array, "b j d"] | None = None,
        mask: Bool[Array, "b j"] | None = None,
    ) -> Float[Array, "b i d"]:
        context = x if context is None else context
        k, v = jnp.split(self.to_kv(context), 2, axis=-1)  # b j (h k)
        i, j = x.shape[1], context.shape[1]
        if j == 1:
            # The softmax over a single key is 1 for every query: to_q has no effect, and its gradient is 0.
            return repeat(self.to_out(v), "b 1 d -> b i d", i=i)
        q, k, v = (rearrange(t, "b n (h k) -> b h n k", h=self.heads) for t in (self.to_q(x), k, v))
        mask = None if mask is None else mask[:, None, None]  # b 1 1 j
        out = attend(q, k, v, mask=mask, causal=self.causal, implementation=self.attention)
        return self.to_out(rearrange(out, "b h i k -> b i (h k)"))


class FeedForward(nnx.Module):
    """Two-layer MLP with the exact (erf) GELU."""

    def __init__(self, dim: int, *, mult: int, **layer: Unpack[LayerOptions]) -> None:
        self.up = Linear(dim, mult * dim, **layer)
        self.down = Linear(mult * dim, dim, **layer)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.down(gelu(self.up(x)))


class Block(RematModule):
    """Pre-norm residual block: attention, then feed-forward. The context is not normalised."""

    def __init__(
        self,
        dim: int,
        *,
        causal: bool,
        heads: int,
        dim_head: int,
        ff_mult: int,
        **layer: Unpack[LayerOptions],
    ) -> None:
        self.attn_norm = LayerNorm(dim, **layer)
        self.attn = Attention(dim, heads=heads, dim_head=dim_head, causal=causal, **layer)
        self.ff_norm = LayerNorm(dim, **layer)
        self.ff = FeedForward(dim, mult=ff_mult, **layer)

    @rematerialized
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b j d"] | None = None,
        mask: Bool[Array, "b j"] | None = None,
    ) -> Float[Array, "b n d"]:
        x = x + self.attn(self.attn_norm(x), context=context, mask=mask)
        return x + self.ff(self.ff_norm(x))


class Transformer(nnx.Module):
    """A stack of blocks at one resolution, optionally with a final norm.

    It has no dropout: neither published model sets the rates that the twin accepts.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        causal: bool = False,
        heads: int = 8,
        dim_head: int = 64,
        ff_mult: int = 4,
        norm_out: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        layer: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.blocks = nnx.List(
            [
                Block(dim, causal=causal, heads=heads, dim_head=dim_head, ff_mult=ff_mult, **layer)
                for _ in range(depth)
            ]
        )
        self.norm = LayerNorm(dim, **layer) if norm_out else None

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b j d"] | None = None,
        mask: Bool[Array, "b j"] | None = None,
    ) -> Float[Array, "b n d"]:
        """`mask` is True at the keys that queries may attend to; masked positions still get an output."""
        for block in self.blocks:
            x = block(x, context=context, mask=mask)
        return x if self.norm is None else self.norm(x)


class Downsample(nnx.Module):
    """Replaces every s consecutive positions by one: their mean, or a linear map of all of them."""

    def __init__(self, dim: int, shorten_factor: int, *, linear: bool, **layer: Unpack[LayerOptions]) -> None:
        self.shorten_factor = shorten_factor
        self.proj = Linear(shorten_factor * dim, dim, **layer) if linear else None

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n//{self.shorten_factor} d"]:
        buckets = rearrange(x, "b (n s) d -> b n s d", s=self.shorten_factor)
        if self.proj is None:
            return jnp.mean(buckets, axis=2)
        return self.proj(rearrange(buckets, "b n s d -> b n (s d)"))


class Upsample(nnx.Module):
    """Replaces every position by s: copies of it, or s linear maps of it."""

    def __init__(self, dim: int, shorten_factor: int, *, linear: bool, **layer: Unpack[LayerOptions]) -> None:
        self.shorten_factor = shorten_factor
        self.proj = Linear(dim, shorten_factor * dim, **layer) if linear else None

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n*{self.shorten_factor} d"]:
        if self.proj is None:
            return repeat(x, "b n d -> b (n s) d", s=self.shorten_factor)
        return rearrange(self.proj(x), "b n (s d) -> b (n s) d", s=self.shorten_factor)


class HourglassTransformer(Model):
    """Layers at full length, layers at shortened length (the valley), and layers at full length again.

    The valley is a transformer or, for a nested `depth`, another hourglass.

    It has no dropout. A call accepts `rngs`, as with every model, and ignores it.

    Args:
      config: sizes and options.
      dtype: type of the computation; by default that of input and parameters together.
      param_dtype: type of fresh parameters.
      rngs: `params` seeds the initial weights.
    """

    def __init__(
        self,
        config: HourglassTransformerConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.dtype = dtype
        dim, causal = config.dim, config.causal
        pre_depth, valley_depth, post_depth = config.depth
        factor, *inner_factors = as_factors(config.shorten_factor, count_levels(config.depth))
        linear = config.updown_sample_type == "linear"
        layer: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        transformer = partial(Transformer, dim, heads=config.heads, dim_head=config.dim_head, **layer)

        self.shorten_factor = factor
        self.downsample = Downsample(dim, factor, linear=linear, **layer)
        self.upsample = Upsample(dim, factor, linear=linear, **layer)
        if isinstance(valley_depth, int):
            self.valley_transformer = transformer(depth=valley_depth, causal=causal)
        else:
            inner = replace(config, depth=valley_depth, shorten_factor=tuple(inner_factors), norm_out=False)
            self.valley_transformer = HourglassTransformer(inner, **layer)
        self.attn_resampling_pre_valley = transformer(depth=1) if config.attn_resampling else None
        self.attn_resampling_post_valley = transformer(depth=1) if config.attn_resampling else None
        self.pre_transformer = transformer(depth=pre_depth, causal=causal)
        self.post_transformer = transformer(depth=post_depth, causal=causal)
        self.norm_out = LayerNorm(dim, **layer) if config.norm_out else None

    def __call__(
        self,
        x: Float[Array, "b n d"],
        mask: Bool[Array, "b n"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        """Returns the final activations. Sequences of any length ≥ 1 are padded inside to what the factors need.

        Args:
          x: embeddings.
          mask: True at the positions that others may attend to. It hides keys only: masked positions still get
            an output, and shortening mixes them into their bucket. For a causal model, no mask and an all-True
            mask differ: the shift inserts zeros, which only a mask hides.

        Raises:
          ValueError: a shape or type that does not fit.
        """
        require_shape("x", x, ("b", "n", self.config.dim))
        require_floating("x", x)
        require_sequence("x", x, mask)
        x = x if self.dtype is None else x.astype(self.dtype)
        s, n = self.shorten_factor, x.shape[1]

        x = self.pre_transformer(x, mask=mask)

        x = pad(x, 0, -n % s)
        padded_mask = None if mask is None else pad(mask, 0, -n % s)
        residual = x
        if self.config.causal:  # shifted, so that no bucket holds positions after the first it is added to
            x = pad(x, s - 1, 1 - s)
            padded_mask = None if padded_mask is None else pad(padded_mask, s - 1, 1 - s)

        down = self.downsample(x)
        bucket_mask = None if padded_mask is None else rearrange(padded_mask, "b (n s) -> b n s", s=s)
        if self.attn_resampling_pre_valley is not None:
            resampled = self.attn_resampling_pre_valley(
                rearrange(down, "b n d -> (b n) 1 d"),
                context=rearrange(x, "b (n s) d -> (b n) s d", s=s),
                mask=None if bucket_mask is None else rearrange(bucket_mask, "b n s -> (b n) s"),
            )
            down = rearrange(resampled, "(b n) 1 d -> b n d", n=down.shape[1])

        valley = self.valley_transformer(down, mask=None if bucket_mask is None else bucket_mask.any(axis=-1))

        x = self.upsample(valley) + residual
        if self.attn_resampling_post_valley is not None:
            resampled = self.attn_resampling_post_valley(
                rearrange(x, "b (n s) d -> (b n) s d", s=s),
                context=rearrange(valley, "b n d -> (b n) 1 d"),
            )
            x = rearrange(resampled, "(b n) s d -> b (n s) d", n=valley.shape[1])

        x = self.post_transformer(x[:, :n], mask=mask)
        return x if self.norm_out is None else self.norm_out(x)


class HourglassTransformerLM(Model):
    """A language model: token and position embeddings, an hourglass (for integer depth a transformer), logits.

    It has no dropout. A call accepts `rngs`, as with every model, and ignores it.

    Args:
      config: sizes and options.
      dtype: type of the computation; by default that of the parameters.
      param_dtype: type of fresh parameters.
      rngs: `params` seeds the initial weights.
    """

    def __init__(
        self,
        config: HourglassTransformerLMConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        layer: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.token_emb = Embed(config.num_tokens, config.dim, **layer)
        self.pos_emb = Embed(config.max_seq_len, config.dim, **layer)
        if isinstance(config.depth, int):
            self.transformer = Transformer(
                config.dim,
                depth=config.depth,
                causal=config.causal,
                heads=config.heads,
                dim_head=config.dim_head,
                norm_out=True,
                **layer,
            )
        else:
            hourglass = HourglassTransformerConfig(
                dim=config.dim,
                depth=config.depth,
                shorten_factor=as_factors(config.shorten_factor, count_levels(config.depth)),
                attn_resampling=config.attn_resampling,
                updown_sample_type=config.updown_sample_type,
                heads=config.heads,
                dim_head=config.dim_head,
                causal=config.causal,
                norm_out=True,
            )
            self.transformer = HourglassTransformer(hourglass, **layer)
        self.to_logits = Linear(config.dim, config.num_tokens, **layer)

    def __call__(
        self,
        tokens: Int[Array, "b n"],
        mask: Bool[Array, "b n"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n v"]:
        """Logits of the next token at every position.

        Args:
          tokens: 1 ≤ n ≤ max_seq_len ids. An id outside the vocabulary is an error, except inside a compiled
            function: there its value is unknown, and another row of the table is read.
          mask: True at the positions that others may attend to; see `HourglassTransformer`.

        Raises:
          ValueError: a shape, type or id that does not fit.
        """
        return self.to_logits(self.features(tokens, mask))

    def features(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        """The final activations, from which the logits are computed; arguments and errors as for the call."""
        require_tokens("tokens", tokens)
        require_sequence("tokens", tokens, mask)
        n, max_seq_len = tokens.shape[1], self.config.max_seq_len
        if n > max_seq_len:
            raise ValueError(f"tokens must have at most max_seq_len={max_seq_len} positions; got {n}")
        require_ids("tokens", tokens, self.config.num_tokens)
        x = self.token_emb(tokens) + self.pos_emb(jnp.arange(n))[None]
        return self.transformer(x, mask=mask)


def pad(x: Array, left: int, right: int) -> Array:
    """Adds zeros (False) before and after the positions (axis 1) of `x`; a negative number removes positions."""
    widths = [(0, 0, 0)] * x.ndim
    widths[1] = (left, right, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)


def require_ids(name: str, ids: Array, num_tokens: int) -> None:
    """ValueError for an id outside the vocabulary. Inside a compiled function ids are not known, and not checked."""
    if isinstance(ids, Tracer) or not getattr(ids, "is_fully_addressable", True) or ids.size == 0:
        return
    values = np.asarray(ids)  # not jnp, which would be traced if `ids` is a constant of a compiled function
    low, high = values.min(), values.max()
    if low < 0 or high >= num_tokens:
        raise ValueError(f"{name} must be ids in [0, num_tokens={num_tokens}); got ids from {low} to {high}")
