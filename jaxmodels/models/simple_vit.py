"""SimpleViT: the plain ViT baseline (https://arxiv.org/abs/2205.01580) with patch dropout (https://arxiv.org/abs/2212.00794).

The PyTorch twin is `torch_reference/simple_vit.py`; the two files are meant to be read side by side.

Shapes: b batch, n tokens (image patches), d model width, h heads, k head width, p patch area · channels.
"""

from dataclasses import dataclass
from typing import Unpack

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from jaxmodels.checks import (
    lists_to_tuples,
    require_divisible,
    require_height_width,
    require_images,
    require_integer,
    require_integer_fields,
    require_rate,
)
from jaxmodels.nn import (
    AttentionModule,
    Dropout,
    LayerNorm,
    LayerOptions,
    Linear,
    Model,
    RematModule,
    attend,
    gelu,
    rematerialized,
    sincos_2d,
)


@dataclass(frozen=True, kw_only=True)
class SimpleViTConfig:
    """Hyperparameters with the names and defaults of vit-pytorch's SimpleViT with patch dropout.

    A wrong value raises ValueError.
    """

    image_size: int | tuple[int, int]  # sides in pixels; images of other multiples of patch_size work as well
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int  # a multiple of 4, for the position table
    depth: int
    heads: int
    mlp_dim: int  # hidden width of the feed-forward
    channels: int = 3
    dim_head: int = 64
    patch_dropout: float = 0.5  # share of the tokens that training drops

    def __post_init__(self) -> None:
        image = require_height_width("image_size", self.image_size, minimum=1)
        patch = require_height_width("patch_size", self.patch_size, minimum=1)
        for name, size, side in zip(("height", "width"), image, patch, strict=True):
            require_divisible(f"image_size ({name})", size, f"patch_size ({name})", side)
        lists_to_tuples(self)
        require_integer_fields(self, dim=8, depth=0)  # dim=4 would divide zero by zero in the position table
        if self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4, for the position table; got dim={self.dim}")
        require_rate("patch_dropout", self.patch_dropout)


class PatchDropout(Dropout):
    """Keeps a random choice of each image's tokens, without replacement; off until `deterministic=False`."""

    def __call__(
        self, inputs: Float[Array, "b n d"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b kept d"]:
        if not self.active:
            return inputs
        b, n, _ = inputs.shape
        noise = jax.random.normal(self.require_rngs(rngs).dropout(), (b, n), jnp.float32)
        _, kept = jax.lax.top_k(noise, max(1, int(n * (1 - self.rate))))  # b kept
        return jnp.take_along_axis(inputs, kept[..., None], axis=1)


class Attention(AttentionModule):
    """Pre-norm multi-head self-attention without biases."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, **layer: Unpack[LayerOptions]) -> None:
        self.heads = heads
        self.norm = LayerNorm(dim, **layer)
        self.to_qkv = Linear(dim, 3 * heads * dim_head, use_bias=False, **layer)
        self.to_out = Linear(heads * dim_head, dim, use_bias=False, **layer)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        q, k, v = jnp.split(self.to_qkv(self.norm(x)), 3, axis=-1)  # b n (h k)
        q, k, v = (rearrange(t, "b n (h k) -> b h n k", h=self.heads) for t in (q, k, v))
        out = attend(q, k, v, implementation=self.attention)  # b h n k
        return self.to_out(rearrange(out, "b h n k -> b n (h k)"))


class FeedForward(nnx.Module):
    """Pre-norm two-layer MLP."""

    def __init__(self, dim: int, hidden_dim: int, **layer: Unpack[LayerOptions]) -> None:
        self.norm = LayerNorm(dim, **layer)
        self.up = Linear(dim, hidden_dim, **layer)
        self.down = Linear(hidden_dim, dim, **layer)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.down(gelu(self.up(self.norm(x))))


class Block(RematModule):
    """Attention and feed-forward, each with a residual."""

    def __init__(
        self, dim: int, *, heads: int, dim_head: int, mlp_dim: int, **layer: Unpack[LayerOptions]
    ) -> None:
        self.attn = Attention(dim, heads=heads, dim_head=dim_head, **layer)
        self.ff = FeedForward(dim, mlp_dim, **layer)

    @rematerialized
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = x + self.attn(x)
        return x + self.ff(x)


class Transformer(nnx.Module):
    """A stack of blocks and a final norm."""

    def __init__(
        self, dim: int, *, depth: int, heads: int, dim_head: int, mlp_dim: int, **layer: Unpack[LayerOptions]
    ) -> None:
        self.norm = LayerNorm(dim, **layer)
        self.blocks = nnx.List(
            [Block(dim, heads=heads, dim_head=dim_head, mlp_dim=mlp_dim, **layer) for _ in range(depth)]
        )

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class SimpleViT(Model):
    """Vision transformer with fixed sin-cos positions and mean pooling.

    Patch dropout is off until `nnx.view(model, deterministic=False)`; it then needs `rngs` in the call.

    Args:
      config: sizes and options.
      dtype: type of the computation; by default that of images and parameters together.
      param_dtype: type of fresh parameters.
      rngs: `params` seeds the initial weights.
    """

    def __init__(
        self,
        config: SimpleViTConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        height, width = require_height_width("patch_size", config.patch_size, minimum=1)
        layer: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.patch_norm = LayerNorm(config.channels * height * width, **layer)
        self.patch_to_token = Linear(config.channels * height * width, config.dim, **layer)
        self.token_norm = LayerNorm(config.dim, **layer)
        self.patch_dropout = PatchDropout(config.patch_dropout)
        self.transformer = Transformer(
            config.dim,
            depth=config.depth,
            heads=config.heads,
            dim_head=config.dim_head,
            mlp_dim=config.mlp_dim,
            **layer,
        )
        self.linear_head = Linear(config.dim, config.num_classes, **layer)

    def __call__(
        self, images: Float[Array, "b height width c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b classes"]:
        """Returns the logits; arguments and errors are those of `tokens`."""
        return self.linear_head(self.tokens(images, rngs=rngs).mean(axis=1))

    def tokens(
        self, images: Float[Array, "b height width c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Returns the normalised tokens after the last block, row by row of the image.

        With patch dropout, max(1, ⌊n · (1 - patch_dropout)⌋) tokens of each image are kept, in random order.

        Args:
          images: sides are multiples of the patch's; they need not be `image_size`.
          rngs: its `dropout` stream chooses the patches.

        Raises:
          ValueError: a shape that does not fit the configuration, or patch dropout without `rngs`.
        """
        p1, p2 = self._check(images)
        patches = rearrange(images, "b (h p1) (w p2) c -> b h w (p1 p2 c)", p1=p1, p2=p2)
        x = self.token_norm(self.patch_to_token(self.patch_norm(patches)))  # b h w d
        _, h, w, d = x.shape
        x = x + sincos_2d(h, w, d, dtype=x.dtype)[None]
        x = self.patch_dropout(rearrange(x, "b h w d -> b (h w) d"), rngs=rngs)
        return self.transformer(x)

    def _check(self, images: Array) -> tuple[int, int]:
        """Returns the sides of a patch, of which those of `images` must be multiples."""
        require_images(images, self.config.channels)
        patch_size = require_height_width("patch_size", self.config.patch_size, minimum=1)
        for name, size, patch in zip(("height", "width"), images.shape[1:3], patch_size, strict=True):
            require_integer(f"image {name}", size, minimum=1)
            require_divisible(f"image {name}", size, f"patch {name}", patch)
        return patch_size
