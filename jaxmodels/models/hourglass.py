"""Hourglass Transformer: most layers run on a shortened sequence (https://arxiv.org/abs/2110.13711).

The PyTorch twin is `torch_reference/hourglass.py`; the two files are meant to be read side by side.

Shapes: b batch, n tokens, d model width, h heads, k head width, i/j query/key position, s shortening
factor, v vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from jaxmodels.checks import require_floating, require_integer, require_shape, require_tokens
from jaxmodels.losses import mean_cross_entropy
from jaxmodels.nn import (
    AttentionModule,
    Embed,
    LayerNorm,
    LayerOptions,
    Linear,
    Model,
    RematModule,
    at_least_float32,
    attend,
    gelu,
    rematerialized,
)


Depth = int | tuple[int, "Depth", int]


@dataclass(frozen=True, kw_only=True)
class HourglassTransformerConfig:
    """Hyperparameters under the names and with the defaults of the package's `HourglassTransformer`."""

    dim: int
    depth: tuple[int, Depth, int]  # layers before, in and after the valley, which may be an hourglass itself
    shorten_factor: int | tuple[int, ...] = 2  # one for all levels, or one each, outermost first
    attn_resampling: bool = True  # one layer of attention refines each shortening and lengthening
    updown_sample_type: Literal["naive", "linear"] = "naive"  # average and repeat, or learned
    heads: int = 8
    dim_head: int = 64
    causal: bool = False
    norm_out: bool = False

    def __post_init__(self) -> None:
        normalize_config(self)
        if isinstance(self.depth, int):
            raise ValueError(f"depth must be (pre, valley, post); got depth={self.depth!r}")


@dataclass(frozen=True, kw_only=True)
class HourglassTransformerLMConfig:
    """Hyperparameters under the names and with the defaults of the package's `HourglassTransformerLM`."""

    num_tokens: int
    dim: int
    max_seq_len: int  # rows of the position table
    depth: Depth  # an integer builds one transformer at full length
    shorten_factor: int | tuple[int, ...] | None = None  # None only for integer depth
    heads: int = 8
    dim_head: int = 64
    attn_resampling: bool = True
    updown_sample_type: Literal["naive", "linear"] = "naive"
    causal: bool = True

    def __post_init__(self) -> None:
        require_integer("num_tokens", self.num_tokens, minimum=1)
        require_integer("max_seq_len", self.max_seq_len, minimum=1)
        normalize_config(self)


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
            # The softmax over a single key is 1 whatever the query: to_q takes no part, its gradient is 0.
            return repeat(self.to_out(v), "b 1 d -> b i d", i=i)
        q, k, v = (rearrange(t, "b n (h k) -> b h n k", h=self.heads) for t in (self.to_q(x), k, v))
        if mask is None:
            out = attend(q, k, v, causal=self.causal, implementation=self.attention)
        else:  # it may leave a query no key at all
            past = jnp.tril(jnp.ones((1, 1, i, j), bool), j - i) if self.causal else True
            out = attend(q, k, v, mask=mask[:, None, None, :] & past, implementation=self.attention)
        return self.to_out(rearrange(out, "b h i k -> b i (h k)"))


class FeedForward(nnx.Module):
    """Two-layer MLP with the exact (erf) GELU."""

    def __init__(self, dim: int, *, mult: int, **layer: Unpack[LayerOptions]) -> None:
        self.up = Linear(dim, mult * dim, **layer)
        self.down = Linear(mult * dim, dim, **layer)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.down(gelu(self.up(x)))


class Block(RematModule):
    """Pre-norm residual block: attention, then feed-forward. A context is not normed."""

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
    """A stack of blocks at one resolution, with a final norm on request.

    Without the twin's dropout rates, which neither published model sets.
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
        """`mask` is True at the keys that may be looked at; masked positions still get an output."""
        for block in self.blocks:
            x = block(x, context=context, mask=mask)
        return x if self.norm is None else self.norm(x)


class Downsample(nnx.Module):
    """One row for every s consecutive ones: their mean, or a linear map of all of them."""

    def __init__(self, dim: int, shorten_factor: int, *, linear: bool, **layer: Unpack[LayerOptions]) -> None:
        self.shorten_factor = shorten_factor
        self.proj = Linear(shorten_factor * dim, dim, **layer) if linear else None

    def __call__(self, x: Float[Array, "b n*s d"]) -> Float[Array, "b n d"]:
        buckets = rearrange(x, "b (n s) d -> b n s d", s=self.shorten_factor)
        if self.proj is None:
            return jnp.mean(buckets, axis=2)
        return self.proj(rearrange(buckets, "b n s d -> b n (s d)"))


class Upsample(nnx.Module):
    """s consecutive rows for every one: copies of it, or linear maps."""

    def __init__(self, dim: int, shorten_factor: int, *, linear: bool, **layer: Unpack[LayerOptions]) -> None:
        self.shorten_factor = shorten_factor
        self.proj = Linear(dim, shorten_factor * dim, **layer) if linear else None

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n*s d"]:
        if self.proj is None:
            return repeat(x, "b n d -> b (n s) d", s=self.shorten_factor)
        return rearrange(self.proj(x), "b n (s d) -> b (n s) d", s=self.shorten_factor)


class HourglassTransformer(Model):
    """Layers at full length, a shortened valley – another hourglass, if nested –, layers at full length.

    Has no dropout; `rngs` is accepted by the call, as by that of every model, and not used.

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
        resampling = config.attn_resampling
        self.attn_resampling_pre_valley = transformer(depth=1) if resampling else None
        self.attn_resampling_post_valley = transformer(depth=1) if resampling else None
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
        """Any length ≥ 1 will do; one that the factors do not divide is padded inside.

        Args:
          x: embeddings.
          mask: True at the positions that others may look at. It hides keys only: masked positions still get
            an output, and naive or linear shortening mixes them into their bucket. A causal model treats no
            mask and an all-True mask differently, because the shift fills in zeros that only a mask hides.

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
        if self.config.causal:  # a bucket then ends at the first position that it is added to
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
    """Token and position embeddings, an hourglass – or, for integer depth, one transformer –, logits.

    Has no dropout; `rngs` is accepted by the call, as by that of every model, and not used.

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
          tokens: 1 ≤ n ≤ max_seq_len ids. Ids outside the vocabulary raise where their values are known;
            inside a compiled function they cannot, and another row of the table is read instead.
          mask: True at the positions that others may look at; see `HourglassTransformer`.

        Raises:
          ValueError: a shape, type or id that does not fit.
        """
        return self.to_logits(self.embed(tokens, mask))

    def embed(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        """The features from which the logits are computed; arguments and errors as for the call."""
        require_tokens("tokens", tokens)
        require_sequence("tokens", tokens, mask)
        n, max_seq_len = tokens.shape[1], self.config.max_seq_len
        if n > max_seq_len:
            raise ValueError(f"tokens must have at most max_seq_len={max_seq_len} positions; got {n}")
        require_ids("tokens", tokens, self.config.num_tokens)
        x = self.token_emb(tokens) + self.pos_emb(jnp.arange(n))
        return self.transformer(x, mask=mask)


def next_token_loss(
    model: HourglassTransformerLM,
    tokens: Int[Array, "b n+1"],
    pad_value: int = 0,
    mask: Bool[Array, "b n"] | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy of every next token that is not `pad_value`; NaN, with zero gradient, where all are.

    The model sees tokens[:, :-1], so that `mask` has one position fewer than `tokens`. Computed in float32 at
    least. The counterpart of calling the package's `AutoregressiveWrapper`.
    """
    require_tokens("tokens", tokens)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    return mean_cross_entropy(model(inputs, mask), targets, ignored=pad_value)


def generate(
    model: HourglassTransformerLM,
    start: Int[Array, "b n"],
    seq_len: int,
    *,
    eos_token: int | None = None,
    temperature: float = 1.0,
    filter_thres: float = 0.9,
    pad_value: int = 0,
    rngs: nnx.Rngs | None = None,
) -> Int[Array, "b m"]:
    """Samples up to `seq_len` tokens that continue `start`; returns only the new ones, m ≤ seq_len.

    The model reads the last max_seq_len tokens. One compiled loop serves all prompt lengths, and all numbers
    of new tokens up to the same multiple of max_seq_len. The counterpart of the package's
    `AutoregressiveWrapper.generate`.

    Args:
      model: a causal model, for which what follows a position cannot matter: prompts are padded on the right.
      start: the prompts, n ≥ 1 ids each.
      seq_len: how many tokens to draw at most.
      eos_token: ends generation once every row has drawn it; what follows it in a row becomes `pad_value`.
      temperature: divides the logits; 0 takes the most likely token.
      filter_thres: draws from the (1 - filter_thres) · v most likely tokens, at least one.
      pad_value: fills the rows that ended.
      rngs: its `sample` stream draws the tokens; not needed where only one token passes the filter.

    Raises:
      ValueError: an argument out of range, a model that is not causal, or `rngs` is missing.
    """
    config = model.config
    if not config.causal:
        raise ValueError("model must be causal to generate; got a model with causal=False")
    require_tokens("start", start)
    require_sequence("start", start, None)
    require_ids("start", start, config.num_tokens)
    require_integer("seq_len", seq_len, minimum=0)
    require_sampling(temperature, filter_thres)
    k = 1 if temperature == 0 else max(1, int((1 - filter_thres) * config.num_tokens))
    if rngs is None and k > 1:
        raise ValueError("rngs must be given to draw tokens, as nnx.Rngs(0), or temperature=0; got rngs=None")

    window = jnp.asarray(start, jnp.int32)[:, -config.max_seq_len :]
    length = window.shape[1]
    count, out = sample(
        model,
        pad(window, 0, config.max_seq_len - length),
        length,
        seq_len,
        eos_token,
        temperature or 1.0,
        pad_value,
        jax.random.key(0) if rngs is None else rngs.sample(),
        k=k,
        capacity=max(1, -(-seq_len // config.max_seq_len)) * config.max_seq_len,
    )
    return out[:, : int(count)]


@partial(jax.jit, static_argnames=("k", "capacity"))
def sample(
    model: HourglassTransformerLM,
    window: Int[Array, "b n"],
    length: int | Int[Array, ""],
    seq_len: int | Int[Array, ""],
    eos_token: int | Int[Array, ""] | None,
    temperature: float | Float[Array, ""],
    pad_value: int | Int[Array, ""],
    key: Array,
    *,
    k: int,
    capacity: int,
) -> tuple[Int[Array, ""], Int[Array, "b {capacity}"]]:
    """The loop of `generate`: how many tokens were drawn, and the tokens in a buffer of `capacity`."""
    b, max_seq_len = window.shape

    def unfinished(carry):
        count, _, _, _, finished = carry
        return (count < seq_len) & ~jnp.all(finished)

    def step(carry):
        count, window, length, out, finished = carry
        features = jax.lax.dynamic_index_in_dim(model.embed(window), length - 1, axis=1, keepdims=False)
        values, indices = jax.lax.top_k(model.to_logits(features), k)
        values = at_least_float32(values)
        drawn = jax.random.categorical(jax.random.fold_in(key, count), values / temperature)
        token = jnp.take_along_axis(indices, drawn[:, None], axis=1)[:, 0]
        window = jnp.where(length == max_seq_len, jnp.roll(window, -1, axis=1), window)
        length = jnp.minimum(length + 1, max_seq_len)
        window = window.at[:, length - 1].set(token)
        out = out.at[:, count].set(token)
        if eos_token is not None:
            finished = finished | (token == eos_token)
        return count + 1, window, length, out, finished

    count, length = jnp.zeros((), jnp.int32), jnp.asarray(length, jnp.int32)
    out = jnp.zeros((b, capacity), jnp.int32)
    carry = count, window, length, out, jnp.zeros(b, bool)
    count, _, _, out, _ = jax.lax.while_loop(unfinished, step, carry)
    if eos_token is not None:
        is_eos = out == eos_token
        out = jnp.where(jnp.cumsum(is_eos, axis=1) - is_eos > 0, pad_value, out)
    return count, out


def pad(x: Array, left: int, right: int) -> Array:
    """Adds zeros (False) before and after the positions of `x`, axis 1; a negative number cuts them off."""
    widths = [(0, 0, 0)] * x.ndim
    widths[1] = (left, right, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)


def normalize_config(config: HourglassTransformerConfig | HourglassTransformerLMConfig) -> None:
    """Checks what both configurations have in common, and turns lists into tuples."""
    require_integer("dim", config.dim, minimum=1)
    require_integer("heads", config.heads, minimum=1)
    require_integer("dim_head", config.dim_head, minimum=1)
    if config.updown_sample_type not in ("naive", "linear"):
        raise ValueError(
            "updown_sample_type must be 'naive' or 'linear'; "
            f"got updown_sample_type={config.updown_sample_type!r}"
        )
    for name in ("attn_resampling", "causal", "norm_out"):
        value = getattr(config, name, False)
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be a bool; got {name}={value!r}")
    depth = as_depth(config.depth)
    factors = as_factors(config.shorten_factor, count_levels(depth))
    object.__setattr__(config, "depth", depth)
    if isinstance(config.shorten_factor, list | tuple) or not factors:
        object.__setattr__(config, "shorten_factor", factors or None)


def as_depth(depth: Any) -> Depth:
    """Turns lists into tuples; ValueError unless an integer ≥ 0 or a nested (integer, depth, integer)."""
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


def require_sequence(name: str, x: Array, mask: Array | None) -> None:
    """ValueError unless `x` has a position and `mask`, if there is one, a bool for each."""
    b, n = x.shape[:2]
    if n == 0:
        raise ValueError(f"{name} must have at least one position; got {name}.shape={tuple(x.shape)}")
    if mask is not None:
        require_shape("mask", mask, (b, n))
        if mask.dtype != bool:
            raise ValueError(f"mask must be bool, True where others may look; got mask.dtype={mask.dtype}")


def require_ids(name: str, ids: Array, num_tokens: int) -> None:
    """ValueError if an id lies outside the vocabulary and its value is known, that is outside of tracing."""
    # Only eager calls pay for this, with one transfer to the host; they are slow anyway.
    if isinstance(ids, Tracer) or not getattr(ids, "is_fully_addressable", True) or ids.size == 0:
        return
    values = np.asarray(ids)  # not jnp, which would trace a constant inside a compiled function
    low, high = values.min(), values.max()
    if low < 0 or high >= num_tokens:
        raise ValueError(f"{name} must be ids in [0, num_tokens={num_tokens}); got ids from {low} to {high}")


def require_sampling(temperature: float, filter_thres: float) -> None:
    """ValueError unless temperature ≥ 0 and 0 ≤ filter_thres ≤ 1."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be finite and ≥ 0; got temperature={temperature!r}")
    if not 0 <= filter_thres <= 1:
        raise ValueError(f"filter_thres must lie in [0, 1]; got filter_thres={filter_thres!r}")
