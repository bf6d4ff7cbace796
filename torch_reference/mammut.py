"""MaMMUT: one text decoder for contrastive and captioning learning (Kuo et al. 2023, https://arxiv.org/abs/2303.16839).

Parameter names and shapes are those of MaMMUT-pytorch 0.0.7: its state_dict loads here unchanged. Classes
that exist only to keep those names say so. `jaxmodels/models/mammut.py` says where the package leaves the paper.

Shapes: b batch, n text positions, d model width, h heads, k head width, i/j query/key position, m image
tokens, q image queries, c image token width, f feed-forward width, v vocabulary, z latent width.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torch_reference.all_gather import gather_batches
from torch_reference.checks import (
    require_divisible,
    require_integer,
    require_integers,
    require_shape,
    require_tokens,
)
from torch_reference.losses import contrastive_loss, mean_cross_entropy
from torch_reference.positions import RotaryEmbedding, rotate


class LayerNorm(nn.Module):
    """Layer norm without a trained bias. (`beta`: the package keeps the absent bias as a buffer of zeros.)"""

    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class EmbedToLatents(nn.Module):
    """Projects an embedding onto the unit sphere that text and images share."""

    def __init__(self, dim: int, dim_latents: int) -> None:
        super().__init__()
        self.to_latents = nn.Linear(dim, dim_latents, bias=False)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b z"]:
        latents = self.to_latents(x)
        return F.normalize(latents, dim=-1)


def attend(
    q: Float[Tensor, "b h i k"],
    k: Float[Tensor, "b j k"],
    v: Float[Tensor, "b j k"],
    *,
    mask: Bool[Tensor, "b i j"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "b h i k"]:
    """Softmax attention with one head of keys and values; `mask` is True where a query may attend to a key."""
    logits = torch.einsum("bhik,bjk->bhij", q, k) * q.shape[-1] ** -0.5
    if causal:
        past = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        mask = past[None] if mask is None else mask & past
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], -torch.finfo(logits.dtype).max)
    return torch.einsum("bhij,bjk->bhik", logits.softmax(dim=-1), v)


class SwiGLU(nn.Module):
    """silu(gate) · x, the gate being the second half of the input (https://arxiv.org/abs/2002.05202)."""

    def forward(self, x: Float[Tensor, "*b g"]) -> Float[Tensor, "*b f"]:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


class FeedForward(nn.Sequential):
    """Gated two-layer MLP without biases. (Sequential: the package names its layers 0 and 2.)"""

    def __init__(self, dim: int, *, mult: int) -> None:
        up, down = nn.Linear(dim, 2 * mult * dim, bias=False), nn.Linear(mult * dim, dim, bias=False)
        super().__init__(up, SwiGLU(), down)


class ParallelTransformerBlock(nn.Module):
    """Causal multi-query attention and feed-forward side by side, from one projection, as in PaLM."""

    def __init__(self, dim: int, *, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.heads = heads
        self.widths = (heads * dim_head, dim_head, dim_head, 2 * ff_mult * dim)
        self.norm = LayerNorm(dim)
        self.rotary_emb = RotaryEmbedding(dim_head)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(heads * dim_head, dim, bias=False)
        # Sequential: the package names the layer ff_out.1.
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(ff_mult * dim, dim, bias=False))

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        fused = self.fused_attn_ff_proj(self.norm(x))
        q, k, v, hidden = fused.split(self.widths, dim=-1)
        angles = self.rotary_emb(x.shape[1])
        q = rotate(rearrange(q, "b n (h k) -> b h n k", h=self.heads), angles)
        k = rotate(k, angles)
        out = attend(q, k, v, mask=mask, causal=True)  # b h n k
        return self.attn_out(rearrange(out, "b h n k -> b n (h k)")) + self.ff_out(hidden)


class CrossAttention(nn.Module):
    """Multi-head queries from `x`, one head of keys and values from `context`; optionally a parallel MLP."""

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int,
        dim_head: int,
        heads: int,
        norm_context: bool = False,
        ff_mult: int | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(dim)
        self.context_norm = LayerNorm(context_dim) if norm_context else None
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff = None if ff_mult is None else FeedForward(dim, mult=ff_mult)

    def forward(self, x: Float[Tensor, "#b n d"], context: Float[Tensor, "b m c"]) -> Float[Tensor, "b n d"]:
        """Queries that are the same for every sample may come as a batch of 1."""
        x = self.norm(x)
        if self.context_norm is not None:
            context = self.context_norm(context)
        q = rearrange(self.to_q(x), "b n (h k) -> b h n k", h=self.heads)
        k, v = self.to_kv(context).chunk(2, dim=-1)  # b m k
        out = attend(q.expand(len(context), -1, -1, -1), k, v)
        out = self.to_out(rearrange(out, "b h n k -> b n (h k)"))
        return out if self.ff is None else out + self.ff(x)


class Residual(nn.Module):
    """`x + fn(x)`. (A module: the package names its part `fn`.)"""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Float[Tensor, "b n d"], *args: Any) -> Float[Tensor, "b n d"]:
        return x + self.fn(x, *args)


class Layer(nn.ModuleList):
    """A text block and, in some layers, cross-attention to the image. (ModuleList: the package names them 0 and 1.)"""

    def __init__(self, dim: int, *, dim_head: int, heads: int, ff_mult: int, cross_attend: bool) -> None:
        sizes: dict[str, Any] = {"dim_head": dim_head, "heads": heads, "ff_mult": ff_mult}
        block = Residual(ParallelTransformerBlock(dim, **sizes))
        cross = [Residual(CrossAttention(dim, context_dim=dim, **sizes))] if cross_attend else []
        super().__init__([block, *cross])

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b q d"] | None = None,
        mask: Bool[Tensor, "b n n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Without `context` it is a layer of the text-only pass."""
        block, *cross = self
        x = block(x, mask)
        if context is not None and cross:
            x = cross[0](x, context)
        return x


class MaMMUTLoss(NamedTuple):
    """`total` is the weighted sum of the two unweighted terms."""

    total: Float[Tensor, ""]
    caption: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]


class MaMMUT(nn.Module):
    """A text stack that runs twice: alone for a contrastive embedding, with cross-attention for captions.

    `img_encoder` maps images to tokens (b, m, image_dim). A module's weights join the state_dict under
    `img_encoder.`; a SimpleViT goes inside a `TokenExtractor`, as inside vit-pytorch's Extractor.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        depth: int,
        cross_attend_every: int = 1,
        cross_attend_layers: Sequence[int] | None = None,
        dim_latents: int | None = None,
        image_dim: int | None = None,
        num_img_queries: int = 256,
        dim_head: int = 64,
        heads: int = 8,
        ff_mult: int = 4,
        img_encoder: Callable[[Tensor], Tensor] | None = None,
        caption_loss_weight: float = 1.0,
        contrastive_loss_weight: float = 1.0,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        require_integers(1, dim=dim, num_tokens=num_tokens, heads=heads, ff_mult=ff_mult)
        require_integers(0, depth=depth, num_img_queries=num_img_queries)
        require_integer("dim_head", dim_head, minimum=2)
        require_integer("pad_id", pad_id, minimum=torch.iinfo(torch.int32).min)
        require_divisible("dim_head", dim_head, "the two halves of a rotary pair", 2)
        image_dim = dim if image_dim is None else require_integer("image_dim", image_dim, minimum=1)
        dim_latents = dim if dim_latents is None else require_integer("dim_latents", dim_latents, minimum=1)
        if img_encoder is not None and not callable(img_encoder):
            raise TypeError(f"img_encoder must be callable; got a {type(img_encoder).__name__}")
        cross = cross_attended_layers(depth, cross_attend_every, cross_attend_layers)
        self.image_dim, self.pad_id = image_dim, pad_id
        self.caption_loss_weight = caption_loss_weight
        self.contrastive_loss_weight = contrastive_loss_weight

        self.token_emb = nn.Embedding(num_tokens, dim)
        self.text_cls_token = nn.Parameter(torch.randn(dim))
        self.img_encoder = img_encoder
        # The first query pools for the contrastive embedding, the others for cross-attention.
        self.img_queries = nn.Parameter(torch.randn(num_img_queries + 1, dim))
        self.img_attn_pool = CrossAttention(
            dim, context_dim=image_dim, dim_head=dim_head, heads=heads, norm_context=True
        )
        self.img_attn_pool_norm = LayerNorm(dim)
        self.text_cls_norm = LayerNorm(dim)
        self.img_to_latents = EmbedToLatents(dim, dim_latents)
        self.text_to_latents = EmbedToLatents(dim, dim_latents)
        self.temperature = nn.Parameter(torch.ones(1))
        self.layers = nn.ModuleList(
            Layer(dim, dim_head=dim_head, heads=heads, ff_mult=ff_mult, cross_attend=i in cross)
            for i in range(1, depth + 1)
        )
        # Tied: the package lists the embedding a second time, as to_logits.1.weight.
        self.to_logits = nn.Sequential(LayerNorm(dim), nn.Linear(dim, num_tokens, bias=False))
        self.to_logits[1].weight = self.token_emb.weight
        nn.init.normal_(self.token_emb.weight, std=0.02)

    def forward(
        self,
        text: Int[Tensor, "b n"],
        text_mask: Any = None,
        images: Tensor | None = None,
        image_tokens: Float[Tensor, "b m c"] | None = None,
        labels: Int[Tensor, "b n"] | None = None,
        return_loss: bool = False,
        return_embeddings: bool = False,
    ) -> Float[Tensor, "..."] | tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Logits, or the loss, or the two embeddings; the last take precedence, as in the package.

        With `return_loss` and without `labels`, text[:, :-1] predicts text[:, 1:]; the embeddings then are
        those of the shortened text too. `text_mask` has no effect: padding is what equals `pad_id`.
        """
        if text_mask is not None:
            warnings.warn("text_mask has no effect; padding is what equals pad_id", stacklevel=2)
        if return_loss and not return_embeddings:
            return self.loss(text, images=images, image_tokens=image_tokens, labels=labels).total
        if return_embeddings:
            text = text[:, :-1] if return_loss and labels is None else text
            return self.embeddings(text, images=images, image_tokens=image_tokens)
        self._check(text, images, image_tokens)
        _, context = self.embed_image(images, image_tokens)
        return self.decode(text, context)

    def embed_text(self, text: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        """The normalised state of a CLS token appended to the text, and the states of the text itself."""
        require_tokens("text", text)
        tokens = self.token_emb(text)
        b, n, _ = tokens.shape
        tokens = torch.cat([tokens, repeat(self.text_cls_token, "d -> b 1 d", b=b)], dim=1)
        # Padding is masked for the CLS token only, the last row.
        mask = F.pad((text != self.pad_id)[:, None], (0, 1, n, 0), value=True)  # b n+1 n+1
        for layer in self.layers:
            tokens = layer(tokens, mask=mask)
        return self.text_cls_norm(tokens[:, -1]), tokens[:, :-1]

    def embed_image(
        self, images: Tensor | None = None, image_tokens: Float[Tensor, "b m c"] | None = None
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b q d"]]:
        """The image's contrastive embedding, and the pooled tokens that the text cross-attends to."""
        image_tokens = self._encode(images, image_tokens)
        pooled = self.img_attn_pool(self.img_queries[None], image_tokens)
        pooled = self.img_attn_pool_norm(pooled)  # b q+1 d
        return pooled[:, 0], pooled[:, 1:]

    def decode(self, text: Int[Tensor, "b n"], context: Float[Tensor, "b q d"]) -> Float[Tensor, "b n v"]:
        """Next-token logits, given the second result of `embed_image`."""
        require_tokens("text", text)
        tokens = self.token_emb(text)
        for layer in self.layers:
            tokens = layer(tokens, context)
        return self.to_logits(tokens)

    def embeddings(
        self, text: Int[Tensor, "b n"], images: Tensor | None = None, image_tokens: Tensor | None = None
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Text and image embeddings before the projection to latents."""
        self._check(text, images, image_tokens)
        text_embeds, _ = self.embed_text(text)
        image_embeds, _ = self.embed_image(images, image_tokens)
        return text_embeds, image_embeds

    def latents(
        self, text: Int[Tensor, "b n"], images: Tensor | None = None, image_tokens: Tensor | None = None
    ) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Unit vectors whose inner products are the similarities of the contrastive loss."""
        text_embeds, image_embeds = self.embeddings(text, images, image_tokens)
        return self.text_to_latents(text_embeds), self.img_to_latents(image_embeds)

    def loss(
        self,
        text: Int[Tensor, "b n"],
        images: Tensor | None = None,
        image_tokens: Float[Tensor, "b m c"] | None = None,
        labels: Int[Tensor, "b n"] | None = None,
    ) -> MaMMUTLoss:
        """Caption and contrastive loss.

        In a process group the contrastive term compares the batches of all ranks: gradients averaged over ranks
        are those of one process with the global batch. This holds for the caption term, a mean over the targets
        of one rank, if every rank has the same number of targets.
        """
        if labels is None:
            text, labels = text[:, :-1], text[:, 1:]
        self._check(text, images, image_tokens)
        require_tokens("labels", labels)
        require_shape("labels", labels, text.shape)
        text_embeds, _ = self.embed_text(text)
        image_embeds, context = self.embed_image(images, image_tokens)
        caption = mean_cross_entropy(self.decode(text, context), labels, ignored=self.pad_id)
        latents = gather_batches(self.text_to_latents(text_embeds), self.img_to_latents(image_embeds))
        contrastive = contrastive_loss(*latents, self.temperature)
        total = self.caption_loss_weight * caption + self.contrastive_loss_weight * contrastive
        return MaMMUTLoss(total, caption, contrastive)

    def _check(self, text: Tensor, images: Tensor | None, image_tokens: Tensor | None) -> None:
        require_tokens("text", text)
        name, given = self._given(images, image_tokens)
        if len(given) != len(text):
            raise ValueError(
                f"text and {name} must have the same batch size; got {len(text)} and {len(given)}"
            )

    def _given(self, images: Tensor | None, image_tokens: Tensor | None) -> tuple[str, Tensor]:
        """Name and value of the argument that is given; ValueError unless it is one and fits."""
        if images is not None and image_tokens is None:
            if self.img_encoder is None:
                raise ValueError("img_encoder must be given to MaMMUT to encode images; got img_encoder=None")
            return "images", images
        if image_tokens is not None and images is None:
            require_shape("image_tokens", image_tokens, ("b", "m", self.image_dim))
            return "image_tokens", image_tokens
        number = "neither" if images is None else "both"
        raise ValueError(f"exactly one of images and image_tokens must be given; got {number}")

    def _encode(self, images: Tensor | None, image_tokens: Tensor | None) -> Float[Tensor, "b m c"]:
        name, given = self._given(images, image_tokens)
        if self.img_encoder is None or name == "image_tokens":
            return given
        tokens = self.img_encoder(given)
        if not isinstance(tokens, Tensor):
            raise TypeError(
                "img_encoder must return one tensor of tokens; "
                f"got a {type(tokens).__name__} (Extractor needs return_embeddings_only=True)"
            )
        return self._given(None, tokens)[1]


def cross_attended_layers(depth: int, every: int, layers: Sequence[int] | None) -> set[int]:
    """The layers that cross-attend, counted from 1: those listed or, without a list, every `every`-th."""
    require_integer("cross_attend_every", every, minimum=1)
    if layers is None:
        return set(range(every, depth + 1, every))
    if not isinstance(layers, tuple | list):
        raise ValueError(f"cross_attend_layers must be a tuple or None; got cross_attend_layers={layers!r}")
    layers, name = tuple(layers), "every entry of cross_attend_layers"
    for layer in layers:
        if require_integer(name, layer, minimum=1) > depth:
            raise ValueError(
                f"{name} must be between 1 and depth; got cross_attend_layers={layers}, {depth=}"
            )
    return set(layers)
