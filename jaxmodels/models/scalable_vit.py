"""ScalableViT: attention scaled in space and channels, and windows that interact (https://arxiv.org/abs/2203.10790).

The PyTorch twin is `torch_reference/scalable_vit.py`; the two files are meant to be read side by side.

Shapes: b batch, c channels, x/y row and column of the feature map, h heads, k key width, v value width,
i/j query/key position, r reduction factor, w1/w2 window sides.
"""

from dataclasses import dataclass, fields
from functools import partial
from itertools import zip_longest
from typing import Any, Unpack

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from jaxmodels.checks import (
    lists_to_tuples,
    require_images,
    require_integer,
    require_integer_fields,
    require_rate,
)
from jaxmodels.nn import (
    AttentionModule,
    Conv,
    Dropout,
    LayerNorm,
    LayerOptions,
    Linear,
    Model,
    RematModule,
    attend,
    by_rows,
    gelu,
    promote,
    rematerialized,
    uniform_fan_in,
)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Hyperparameters of one stage: those of the model, with one value each."""

    dim: int
    depth: int
    heads: int
    reduction_factor: int
    window_size: int | None
    iwsa_dim_key: int
    iwsa_dim_value: int
    ssa_dim_key: int
    ssa_dim_value: int
    ff_expansion_factor: int
    dropout: float

    def __post_init__(self) -> None:
        require_integer_fields(self, depth=0)


@dataclass(frozen=True, kw_only=True)
class ScalableViTConfig:
    """Hyperparameters with the names and defaults of vit-pytorch's `ScalableViT`.

    `depth` has one entry per stage. A field whose type includes a tuple takes one value for all stages, or one
    value per stage. A wrong value raises ValueError.
    """

    num_classes: int
    dim: int  # channels of the first stage; every next one has twice as many
    depth: tuple[int, ...]  # blocks of each stage
    heads: int | tuple[int, ...]
    reduction_factor: int | tuple[int, ...]  # side of the patches that become one key of the global attention
    window_size: int | tuple[int | None, ...] | None = None  # None: the window is the map
    iwsa_dim_key: int | tuple[int, ...] = 32  # widths per head, which need not add up to the channels
    iwsa_dim_value: int | tuple[int, ...] = 32
    ssa_dim_key: int | tuple[int, ...] = 32
    ssa_dim_value: int | tuple[int, ...] = 32
    ff_expansion_factor: int = 4  # hidden width of the feed-forward, in units of the channels
    channels: int = 3
    dropout: float = 0.0  # rate, for attention weights and for outputs of attention and feed-forward layers

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        require_integer_fields(self)
        require_rate("dropout", self.dropout)
        if not isinstance(self.depth, tuple) or not self.depth:
            raise ValueError(
                f"depth must be a tuple with the number of blocks of each stage; got depth={self.depth!r}"
            )
        _ = self.stages  # raises ValueError for a field that does not fit the stages

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The hyperparameters of each stage."""
        stages = len(self.depth)
        values = {
            field.name: one_per_stage(field.name, getattr(self, field.name), stages)
            for field in fields(StageConfig)
        }
        values["dim"] = tuple(self.dim * 2**i for i in range(stages))
        return tuple(StageConfig(**{name: value[i] for name, value in values.items()}) for i in range(stages))


def one_per_stage(name: str, value: Any, stages: int) -> tuple:
    """`value` as a tuple with one entry per stage; ValueError for a tuple of another length."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * stages
    if len(values) != stages:
        raise ValueError(
            f"{name} must be one value or a tuple with one for each of the {stages} stages in depth; "
            f"got {name}={value!r}"
        )
    return values


class PatchLinear(nnx.Module):
    """Linear map of r×r patches, without bias; PyTorch's twin is a convolution with stride and kernel r.

    Rows and columns that do not fill a patch are ignored.
    """

    def __init__(self, dim_in: int, dim_out: int, *, size: int, **layer: Unpack[LayerOptions]) -> None:
        init, param_dtype, rngs = uniform_fan_in(dim_in * size**2), layer["param_dtype"], layer["rngs"]
        self.kernel = nnx.Param(init(rngs.params(), (size, size, dim_in, dim_out), param_dtype))
        self.dtype = layer["dtype"]

    def __call__(self, x: Float[Array, "b x y c"]) -> Float[Array, "b z w d"]:
        x, kernel = promote(x, self.kernel[...], dtype=self.dtype)
        r = kernel.shape[0]
        x = x[:, : x.shape[1] // r * r, : x.shape[2] // r * r]
        patches = rearrange(x, "b (x r1) (y r2) c -> b x y (r1 r2 c)", r1=r, r2=r)
        return by_rows(lambda rows: rows @ rearrange(kernel, "r1 r2 c d -> (r1 r2 c) d"), patches)


class PEG(nnx.Module):
    """Position encoding generator: a depthwise 3×3 convolution with a residual (https://arxiv.org/abs/2102.10882)."""

    def __init__(self, dim: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        init = uniform_fan_in(9)
        self.kernel = nnx.Param(init(rngs.params(), (3, 3, dim), param_dtype))
        self.bias = nnx.Param(init(rngs.params(), (dim,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b x y c"]) -> Float[Array, "b x y c"]:
        # Nine shifted products: XLA fuses them, while its grouped convolution is far slower on a CPU.
        x, kernel, bias = promote(x, self.kernel[...], self.bias[...], dtype=self.dtype)
        _, height, width, _ = x.shape
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        out = jnp.broadcast_to(bias, x.shape)
        for i in range(3):
            for j in range(3):
                out = out + padded[:, i : i + height, j : j + width] * jnp.broadcast_to(kernel[i, j], x.shape)
        return out + x


class FeedForward(nnx.Module):
    """Pre-norm two-layer MLP per pixel."""

    def __init__(
        self, dim: int, *, expansion_factor: int, dropout: float, **layer: Unpack[LayerOptions]
    ) -> None:
        self.norm = LayerNorm(dim, **layer)
        self.up = Linear(dim, expansion_factor * dim, **layer)
        self.down = Linear(expansion_factor * dim, dim, **layer)
        self.dropout = Dropout(dropout)

    def __call__(
        self, x: Float[Array, "b x y c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b x y c"]:
        hidden = self.dropout(gelu(self.up(self.norm(x))), rngs=rngs)
        return self.dropout(self.down(hidden), rngs=rngs)


class ScalableSelfAttention(AttentionModule):
    """Global attention whose keys and values come from r×r patches (section 3.2).

    Rows and columns that do not fill a patch are left out of the keys, as in the package.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_key: int,
        dim_value: int,
        reduction_factor: int,
        dropout: float,
        **layer: Unpack[LayerOptions],
    ) -> None:
        self.heads = heads
        self.dropout = Dropout(dropout)
        self.norm = LayerNorm(dim, **layer)
        self.to_q = Linear(dim, heads * dim_key, use_bias=False, **layer)
        self.to_k = PatchLinear(dim, heads * dim_key, size=reduction_factor, **layer)
        self.to_v = PatchLinear(dim, heads * dim_value, size=reduction_factor, **layer)
        self.to_out = Linear(heads * dim_value, dim, **layer)

    def __call__(
        self, x: Float[Array, "b x y c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b x y c"]:
        height = x.shape[1]
        dropout = partial(self.dropout, rngs=rngs)
        x = self.norm(x)
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        q, k, v = (rearrange(t, "b x y (h k) -> b h (x y) k", h=self.heads) for t in (q, k, v))
        out = attend(q, k, v, dropout=dropout if self.dropout.active else None, implementation=self.attention)
        return dropout(self.to_out(rearrange(out, "b h (x y) v -> b x y (h v)", x=height)))


class InteractiveWindowedSelfAttention(AttentionModule):
    """Attention inside windows, joined by a 3×3 convolution of the values between them (section 3.3)."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_key: int,
        dim_value: int,
        window_size: int | None,
        dropout: float,
        **layer: Unpack[LayerOptions],
    ) -> None:
        self.heads = heads
        self.window_size = window_size
        self.dropout = Dropout(dropout)
        self.norm = LayerNorm(dim, **layer)
        self.local_interactive_module = Conv(
            heads * dim_value, heads * dim_value, kernel_size=3, padding=1, **layer
        )
        self.to_q = Linear(dim, heads * dim_key, use_bias=False, **layer)
        self.to_k = Linear(dim, heads * dim_key, use_bias=False, **layer)
        self.to_v = Linear(dim, heads * dim_value, use_bias=False, **layer)
        self.to_out = Linear(heads * dim_value, dim, **layer)

    def __call__(
        self, x: Float[Array, "b x y c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b x y c"]:
        _, height, width, _ = x.shape
        w1, w2 = self.window_size or height, self.window_size or width
        dropout = partial(self.dropout, rngs=rngs)
        x = self.norm(x)
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        local = self.local_interactive_module(v)
        q, k, v = (
            rearrange(t, "b (x w1) (y w2) (h k) -> (b x y) h (w1 w2) k", h=self.heads, w1=w1, w2=w2)
            for t in (q, k, v)
        )
        out = attend(q, k, v, dropout=dropout if self.dropout.active else None, implementation=self.attention)
        out = rearrange(
            out,
            "(b x y) h (w1 w2) v -> b (x w1) (y w2) (h v)",
            x=height // w1,
            y=width // w2,
            w1=w1,
        )
        return dropout(self.to_out(out + local))


class Block(RematModule):
    """Global attention, then windows, with a feed-forward before the windows and not after them.

    That order contradicts the paper; every published checkpoint depends on it.
    """

    def __init__(self, stage: StageConfig, *, first: bool, **layer: Unpack[LayerOptions]) -> None:
        dim, heads, dropout = stage.dim, stage.heads, stage.dropout
        self.ssa = ScalableSelfAttention(
            dim,
            heads=heads,
            dim_key=stage.ssa_dim_key,
            dim_value=stage.ssa_dim_value,
            reduction_factor=stage.reduction_factor,
            dropout=dropout,
            **layer,
        )
        self.ff1 = FeedForward(dim, expansion_factor=stage.ff_expansion_factor, dropout=dropout, **layer)
        self.peg = PEG(dim, **layer) if first else None
        self.ff2 = FeedForward(dim, expansion_factor=stage.ff_expansion_factor, dropout=dropout, **layer)
        self.iwsa = InteractiveWindowedSelfAttention(
            dim,
            heads=heads,
            dim_key=stage.iwsa_dim_key,
            dim_value=stage.iwsa_dim_value,
            window_size=stage.window_size,
            dropout=dropout,
            **layer,
        )

    @rematerialized
    def __call__(
        self, x: Float[Array, "b x y c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b x y c"]:
        x = x + self.ssa(x, rngs=rngs)
        x = x + self.ff1(x, rngs=rngs)
        if self.peg is not None:
            x = self.peg(x)
        x = x + self.ff2(x, rngs=rngs)
        return x + self.iwsa(x, rngs=rngs)


class Stage(nnx.Module):
    """A stack of blocks and, except in the last stage, a norm."""

    def __init__(self, stage: StageConfig, *, norm: bool, **layer: Unpack[LayerOptions]) -> None:
        self.blocks = nnx.List([Block(stage, first=i == 0, **layer) for i in range(stage.depth)])
        self.norm = LayerNorm(stage.dim, **layer) if norm else None

    def __call__(
        self, x: Float[Array, "b x y c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b x y c"]:
        for block in self.blocks:
            x = block(x, rngs=rngs)
        return x if self.norm is None else self.norm(x)


class ScalableViT(Model):
    """A pyramid of stages and a linear classifier. Each stage halves the resolution and doubles the channels.

    Dropout is off until `nnx.view(model, deterministic=False)`; it then needs `rngs` in the call.

    Args:
      config: sizes and options.
      dtype: type of the computation; by default that of images and parameters together.
      param_dtype: type of fresh parameters.
      rngs: `params` seeds the initial weights.
    """

    def __init__(
        self,
        config: ScalableViTConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        stages, last = config.stages, len(config.stages) - 1
        layer: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.to_patches = Conv(config.channels, config.dim, kernel_size=7, stride=4, padding=3, **layer)
        self.stages = nnx.List([Stage(stage, norm=i < last, **layer) for i, stage in enumerate(stages)])
        self.downsamples = nnx.List(
            [
                Conv(stage.dim, 2 * stage.dim, kernel_size=3, stride=2, padding=1, **layer)
                for stage in stages[:last]
            ]
        )
        self.head_norm = LayerNorm(stages[-1].dim, **layer)
        self.head = Linear(stages[-1].dim, config.num_classes, **layer)

    def __call__(
        self, images: Float[Array, "b height width c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b classes"]:
        """Returns the logits; arguments and errors are those of `features`."""
        return self.head(self.head_norm(self.features(images, rngs=rngs)[-1].mean(axis=(1, 2))))

    def features(
        self, images: Float[Array, "b height width c"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns the output of every stage, finest first, after its norm (the last stage has none).

        The map of stage s has ⌈side / (4 · 2^s)⌉ rows or columns and dim · 2^s channels.

        Args:
          images: sides for which every map is a multiple of its window and at least its reduction factor.
          rngs: the `dropout` stream draws the masks, after `nnx.view(model, deterministic=False)`.

        Raises:
          ValueError: a shape that does not fit the configuration, or dropout without `rngs`.
        """
        self._check(images)
        x = self.to_patches(images)
        features = []
        for stage, downsample in zip_longest(self.stages, self.downsamples):
            features.append(stage(x, rngs=rngs))
            x = features[-1] if downsample is None else downsample(features[-1])
        return tuple(features)

    def _check(self, images: Array) -> None:
        require_images(images, self.config.channels)
        for name, size in zip(("height", "width"), images.shape[1:3], strict=True):
            require_integer(f"image {name}", size, minimum=1)
            for i, stage in enumerate(self.config.stages):
                side = -(-size // (4 * 2**i))  # every convolution rounds up
                if stage.depth and side < stage.reduction_factor:
                    raise ValueError(
                        f"the map of stage {i} must be at least reduction_factor={stage.reduction_factor} "
                        f"in {name}; got {side}, from an image {name} of {size}"
                    )
                if stage.depth and stage.window_size and side % stage.window_size:
                    raise ValueError(
                        f"the map of stage {i} must be a multiple of window_size={stage.window_size} "
                        f"in {name}; got {side}, from an image {name} of {size}"
                    )
