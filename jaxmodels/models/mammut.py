"""MaMMUT: one text decoder for contrastive and captioning learning (Kuo et al. 2023, https://arxiv.org/abs/2303.16839).

The PyTorch twin is `torch_reference/mammut.py`; the two files are meant to be read side by side. Like the
package MaMMUT-pytorch, and unlike the paper, the text-only pass is causal and the contrastive loss is a plain
softmax cross-entropy.

Shapes: b batch, n text positions, d model width, h heads, k head width, i/j query/key position, m image
tokens, q image queries, c image token width, f feed-forward width, v vocabulary, z latent width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from jaxmodels.checks import (
    lists_to_tuples,
    require_divisible,
    require_floating,
    require_integer,
    require_integer_fields,
    require_number,
    require_shape,
    require_tokens,
)
from jaxmodels.losses import contrastive_loss, mean_cross_entropy
from jaxmodels.nn import (
    AttentionModule,
    Embed,
    LayerNorm,
    LayerOptions,
    Linear,
    Model,
    RematModule,
    RotaryEmbedding,
    at_least_float32,
    attend,
    l2_normalize,
    rematerialized,
    rotate,
)


@dataclass(frozen=True, kw_only=True)
class MaMMUTConfig:
    """Hyperparameters with the names and defaults of MaMMUT-pytorch's `MaMMUT`; ValueError for a wrong one."""

    dim: int
    num_tokens: int
    depth: int
    cross_attend_every: int = 1  # 2: every second layer cross-attends to the image
    cross_attend_layers: tuple[int, ...] | None = None  # counted from 1; replaces cross_attend_every
    dim_latents: int | None = None  # width of the contrastive space; None is dim
    image_dim: int | None = None  # width of the image tokens; None is dim
    num_img_queries: int = 256  # pooled image tokens that the text cross-attends to
    dim_head: int = 64
    heads: int = 8
    ff_mult: int = 4  # hidden width of the feed-forwards, in units of dim
    caption_loss_weight: float = 1.0
    contrastive_loss_weight: float = 1.0
    pad_id: int = 0  # the padding token; an id outside the vocabulary, like -1, means no padding

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        require_integer_fields(self, depth=0, num_img_queries=0, dim_head=2, pad_id=np.iinfo(np.int32).min)
        require_divisible("dim_head", self.dim_head, "the two halves of a rotary pair", 2)
        require_number("caption_loss_weight", self.caption_loss_weight)
        require_number("contrastive_loss_weight", self.contrastive_loss_weight)
        cross_attended_layers(self.depth, self.cross_attend_every, self.cross_attend_layers)


class EmbedToLatents(nnx.Module):
    """Projects an embedding onto the unit sphere that text and images share."""

    def __init__(self, dim: int, dim_latents: int, **layer: Unpack[LayerOptions]) -> None:
        self.to_latents = Linear(dim, dim_latents, use_bias=False, **layer)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b z"]:
        latents = self.to_latents(x)
        # float16 has no number as small as the guard against division by zero.
        return l2_normalize(at_least_float32(latents)).astype(latents.dtype)


def swiglu(x: Float[Array, "*b g"]) -> Float[Array, "*b f"]:
    """silu(gate) · x, the gate being the second half of the input (https://arxiv.org/abs/2002.05202)."""
    x, gate = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * x


class FeedForward(nnx.Module):
    """Gated two-layer MLP without biases."""

    def __init__(self, dim: int, *, mult: int, **layer: Unpack[LayerOptions]) -> None:
        self.up = Linear(dim, 2 * mult * dim, use_bias=False, **layer)
        self.down = Linear(mult * dim, dim, use_bias=False, **layer)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.down(swiglu(self.up(x)))


class ParallelTransformerBlock(AttentionModule):
    """Causal multi-query attention and feed-forward side by side, from one projection, as in PaLM."""

    def __init__(self, config: MaMMUTConfig, **layer: Unpack[LayerOptions]) -> None:
        dim, dim_head, heads, ff_mult = config.dim, config.dim_head, config.heads, config.ff_mult
        self.heads = heads
        self.widths = (heads * dim_head, dim_head, dim_head, 2 * ff_mult * dim)
        self.norm = LayerNorm(dim, use_bias=False, **layer)
        self.rotary_emb = RotaryEmbedding(dim_head, param_dtype=layer["param_dtype"])
        self.fused_attn_ff_proj = Linear(dim, sum(self.widths), use_bias=False, **layer)
        self.attn_out = Linear(heads * dim_head, dim, use_bias=False, **layer)
        self.ff_out = Linear(ff_mult * dim, dim, use_bias=False, **layer)

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n n"] | None = None
    ) -> Float[Array, "b n d"]:
        fused = self.fused_attn_ff_proj(self.norm(x))
        q, k, v, hidden = jnp.split(fused, np.cumsum(self.widths[:-1]), axis=-1)
        angles = self.rotary_emb(x.shape[1])
        q = rotate(rearrange(q, "b n (h k) -> b h n k", h=self.heads), angles)
        k = rotate(k, angles)
        k, v, mask = k[:, None], v[:, None], None if mask is None else mask[:, None]
        out = attend(q, k, v, mask=mask, causal=True, implementation=self.attention)  # b h n k
        return self.attn_out(rearrange(out, "b h n k -> b n (h k)")) + self.ff_out(swiglu(hidden))


class CrossAttention(AttentionModule):
    """Multi-head queries from `x`, one head of keys and values from `context`; optionally a parallel MLP."""

    def __init__(
        self,
        config: MaMMUTConfig,
        *,
        context_dim: int,
        norm_context: bool = False,
        ff_mult: int | None = None,
        **layer: Unpack[LayerOptions],
    ) -> None:
        dim, dim_head, heads = config.dim, config.dim_head, config.heads
        self.heads = heads
        self.norm = LayerNorm(dim, use_bias=False, **layer)
        self.context_norm = LayerNorm(context_dim, use_bias=False, **layer) if norm_context else None
        self.to_q = Linear(dim, heads * dim_head, use_bias=False, **layer)
        self.to_kv = Linear(context_dim, 2 * dim_head, use_bias=False, **layer)
        self.to_out = Linear(heads * dim_head, dim, use_bias=False, **layer)
        self.ff = None if ff_mult is None else FeedForward(dim, mult=ff_mult, **layer)

    def __call__(self, x: Float[Array, "#b n d"], context: Float[Array, "b m c"]) -> Float[Array, "b n d"]:
        """Queries that are the same for every sample may come as a batch of 1."""
        x = self.norm(x)
        if self.context_norm is not None:
            context = self.context_norm(context)
        q = rearrange(self.to_q(x), "b n (h k) -> b h n k", h=self.heads)
        k, v = jnp.split(self.to_kv(context), 2, axis=-1)  # b m k
        q = jnp.broadcast_to(q, (len(context), *q.shape[1:]))
        out = attend(q, k[:, None], v[:, None], implementation=self.attention)  # b h n k
        out = self.to_out(rearrange(out, "b h n k -> b n (h k)"))
        return out if self.ff is None else out + self.ff(x)


class Layer(RematModule):
    """A text block and, in some layers, cross-attention to the image."""

    def __init__(self, config: MaMMUTConfig, *, cross_attend: bool, **layer: Unpack[LayerOptions]) -> None:
        dim, ff_mult = config.dim, config.ff_mult
        self.block = ParallelTransformerBlock(config, **layer)
        self.cross = (
            CrossAttention(config, context_dim=dim, ff_mult=ff_mult, **layer) if cross_attend else None
        )

    @rematerialized
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b q d"] | None = None,
        mask: Bool[Array, "b n n"] | None = None,
    ) -> Float[Array, "b n d"]:
        """Without `context` it is a layer of the text-only pass."""
        x = x + self.block(x, mask)
        if context is not None and self.cross is not None:
            x = x + self.cross(x, context)
        return x


class MaMMUTLoss(NamedTuple):
    """`total` is the weighted sum of the two unweighted terms."""

    total: Float[Array, ""]
    caption: Float[Array, ""]
    contrastive: Float[Array, ""]


class MaMMUT(Model):
    """A text stack that runs twice: alone for a contrastive embedding, with cross-attention for captions.

    A method with an image takes exactly one of `images` (b, height, width, channels), which `img_encoder`
    encodes, and `image_tokens` (b, m, image_dim). `rngs` serve an encoder with dropout; MaMMUT has none. A text is
    a row of ids below `num_tokens`, padded with `pad_id`. ValueError for a shape that does not fit.

    Args:
      config: sizes and options.
      img_encoder: from images to tokens (b, m, image_dim): a module with a method `tokens`, like SimpleViT,
        or anything that can be called. A module becomes a part of the model, and is trained with it.
      dtype: type of the computation; by default that of image tokens and parameters together.
      param_dtype: type of fresh parameters.
      rngs: `params` seeds the initial weights.
    """

    def __init__(
        self,
        config: MaMMUTConfig,
        img_encoder: Callable[..., Array] | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if img_encoder is not None and not callable(img_encoder):
            raise TypeError(f"img_encoder must be callable; got a {type(img_encoder).__name__}")
        self.config = config
        dim = config.dim
        image_dim = self.image_dim = dim if config.image_dim is None else config.image_dim
        dim_latents = dim if config.dim_latents is None else config.dim_latents
        cross = cross_attended_layers(config.depth, config.cross_attend_every, config.cross_attend_layers)
        layer: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        self.token_emb = Embed(config.num_tokens, dim, std=0.02, **layer)
        self.text_cls_token = nnx.Param(jax.random.normal(rngs.params(), (dim,), param_dtype))
        self.img_encoder = img_encoder
        # The first query pools for the contrastive embedding, the others for cross-attention.
        img_queries = jax.random.normal(rngs.params(), (config.num_img_queries + 1, dim), param_dtype)
        self.img_queries = nnx.Param(img_queries)
        self.img_attn_pool = CrossAttention(config, context_dim=image_dim, norm_context=True, **layer)
        self.img_attn_pool_norm = LayerNorm(dim, use_bias=False, **layer)
        self.text_cls_norm = LayerNorm(dim, use_bias=False, **layer)
        self.img_to_latents = EmbedToLatents(dim, dim_latents, **layer)
        self.text_to_latents = EmbedToLatents(dim, dim_latents, **layer)
        self.temperature = nnx.Param(jnp.ones((1,), param_dtype))
        self.layers = nnx.List(
            [Layer(config, cross_attend=i in cross, **layer) for i in range(1, config.depth + 1)]
        )
        self.norm = LayerNorm(dim, use_bias=False, **layer)

    def __call__(
        self,
        text: Int[Array, "b n"],
        images: Float[Array, "b height width channels"] | None = None,
        image_tokens: Float[Array, "b m c"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n v"]:
        """Next-token logits. Padding is not masked, only later positions are."""
        self._check(text, images, image_tokens)
        _, context = self.embed_image(images, image_tokens, rngs=rngs)
        return self.decode(text, context)

    def embed_text(self, text: Int[Array, "b n"]) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
        """The normalised state of a CLS token appended to the text, and the states of the text itself.

        The CLS token does not attend to padding but comes after it: its rotary position, and with it the
        embedding, depends on the padded length.
        """
        require_tokens("text", text)
        tokens = self.token_emb(text)
        b, n, _ = tokens.shape
        text_cls_token = self.text_cls_token[...].astype(tokens.dtype)
        tokens = jnp.concatenate([tokens, repeat(text_cls_token, "d -> b 1 d", b=b)], axis=1)
        # Padding is masked for the CLS token only, the last row: b n+1 n+1.
        mask = jnp.pad((text != self.config.pad_id)[:, None], ((0, 0), (n, 0), (0, 1)), constant_values=True)
        for layer in self.layers:
            tokens = layer(tokens, mask=mask)
        return self.text_cls_norm(tokens[:, -1]), tokens[:, :-1]

    def embed_image(
        self,
        images: Float[Array, "b height width channels"] | None = None,
        image_tokens: Float[Array, "b m c"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b d"], Float[Array, "b q d"]]:
        """The image's contrastive embedding, and the pooled tokens that the text cross-attends to."""
        image_tokens = self._encode(images, image_tokens, rngs)
        pooled = self.img_attn_pool(self.img_queries[...][None], image_tokens)
        pooled = self.img_attn_pool_norm(pooled)  # b q+1 d
        return pooled[:, 0], pooled[:, 1:]

    def decode(self, text: Int[Array, "b n"], context: Float[Array, "b q d"]) -> Float[Array, "b n v"]:
        """Next-token logits, given the second result of `embed_image`, which captioning computes once."""
        require_tokens("text", text)
        tokens = self.token_emb(text)
        for layer in self.layers:
            tokens = layer(tokens, context)
        return self.token_emb.attend(self.norm(tokens))

    def embeddings(
        self,
        text: Int[Array, "b n"],
        images: Float[Array, "b height width channels"] | None = None,
        image_tokens: Float[Array, "b m c"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Text and image embeddings before the projection to latents."""
        self._check(text, images, image_tokens)
        text_embeds, _ = self.embed_text(text)
        image_embeds, _ = self.embed_image(images, image_tokens, rngs=rngs)
        return text_embeds, image_embeds

    def latents(
        self,
        text: Int[Array, "b n"],
        images: Float[Array, "b height width channels"] | None = None,
        image_tokens: Float[Array, "b m c"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b z"], Float[Array, "b z"]]:
        """Unit vectors of texts and images, whose inner products rank them for retrieval."""
        text_embeds, image_embeds = self.embeddings(text, images, image_tokens, rngs=rngs)
        return self.text_to_latents(text_embeds), self.img_to_latents(image_embeds)

    def loss(
        self,
        text: Int[Array, "b n"],
        images: Float[Array, "b height width channels"] | None = None,
        image_tokens: Float[Array, "b m c"] | None = None,
        labels: Int[Array, "b n"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> MaMMUTLoss:
        """Caption and contrastive loss of the batch, which in a sharded program is the global one.

        Without `labels`, text[:, :-1] predicts text[:, 1:], and both terms see the shortened text. With them,
        the logits of text[:, t] predict labels[:, t]. Labels equal to `pad_id` do not count.
        """
        if labels is None:
            require_tokens("text", text)
            text, labels = text[:, :-1], text[:, 1:]
        self._check(text, images, image_tokens)
        require_tokens("labels", labels)
        require_shape("labels", labels, text.shape)
        text_embeds, _ = self.embed_text(text)
        image_embeds, context = self.embed_image(images, image_tokens, rngs=rngs)
        caption = mean_cross_entropy(self.decode(text, context), labels, ignored=self.config.pad_id)
        latents = self.text_to_latents(text_embeds), self.img_to_latents(image_embeds)
        contrastive = contrastive_loss(*latents, self.temperature[...])
        total = self.config.caption_loss_weight * caption + self.config.contrastive_loss_weight * contrastive
        return MaMMUTLoss(total, caption, contrastive)

    def _check(self, text: Array, images: Array | None, image_tokens: Array | None) -> None:
        require_tokens("text", text)
        name, given = self._given(images, image_tokens)
        if len(given) != len(text):
            raise ValueError(
                f"text and {name} must have the same batch size; got {len(text)} and {len(given)}"
            )

    def _given(self, images: Array | None, image_tokens: Array | None) -> tuple[str, Array]:
        """Name and value of the argument that is given; ValueError unless it is one and fits."""
        if images is not None and image_tokens is None:
            if self.img_encoder is None:
                raise ValueError("img_encoder must be given to MaMMUT to encode images; got img_encoder=None")
            return "images", images
        if image_tokens is not None and images is None:
            require_shape("image_tokens", image_tokens, ("b", "m", self.image_dim))
            require_floating("image_tokens", image_tokens)
            return "image_tokens", image_tokens
        number = "neither" if images is None else "both"
        raise ValueError(f"exactly one of images and image_tokens must be given; got {number}")

    def _encode(self, images: Array | None, image_tokens: Array | None, rngs: nnx.Rngs | None) -> Array:
        """The image tokens (b, m, c)."""
        name, given = self._given(images, image_tokens)
        if self.img_encoder is None or name == "image_tokens":
            return given
        encode = getattr(self.img_encoder, "tokens", self.img_encoder)
        tokens = encode(given) if rngs is None else encode(given, rngs=rngs)
        if not isinstance(tokens, jax.Array):
            raise TypeError(f"img_encoder must return one array of tokens; got a {type(tokens).__name__}")
        return self._given(None, tokens)[1]


def cross_attended_layers(depth: int, every: int, layers: tuple[int, ...] | None) -> set[int]:
    """The layers that cross-attend, counted from 1: those listed or, without a list, every `every`-th."""
    if layers is None:
        return set(range(every, depth + 1, every))
    if not isinstance(layers, tuple):
        raise ValueError(f"cross_attend_layers must be a tuple or None; got cross_attend_layers={layers!r}")
    name = "every entry of cross_attend_layers"
    for layer in layers:
        if require_integer(name, layer, minimum=1) > depth:
            raise ValueError(
                f"{name} must be between 1 and depth; got cross_attend_layers={layers}, {depth=}"
            )
    return set(layers)
