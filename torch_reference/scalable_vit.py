"""ScalableViT: attention scaled in space and channels, and windows that interact (https://arxiv.org/abs/2203.10790).

Parameter names and shapes are those of vit-pytorch 1.26.11: its state_dict loads here unchanged. Classes that
exist only to keep those names say so.

Shapes: b batch, c channels, x/y row and column of the feature map, h heads, k key width, v value width,
i/j query/key position, r reduction factor, w1/w2 window sides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from torch_reference.checks import (
    require_images,
    require_integer,
    require_integer_fields,
    require_integers,
    require_rate,
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


def build_stages(
    dim: int, depth: Sequence[int], ff_expansion_factor: int, dropout: float, **staged: Any
) -> tuple[StageConfig, ...]:
    """The hyperparameters of each stage; ValueError for an argument that does not fit."""
    require_integers(1, dim=dim, ff_expansion_factor=ff_expansion_factor)
    require_rate("dropout", dropout)
    if not isinstance(depth, tuple | list) or not depth:
        raise ValueError(
            f"depth must be a tuple with the number of blocks of each stage; got depth={depth!r}"
        )
    values = {name: one_per_stage(name, value, len(depth)) for name, value in staged.items()}
    return tuple(
        StageConfig(
            dim=dim * 2**i,
            depth=blocks,
            ff_expansion_factor=ff_expansion_factor,
            dropout=dropout,
            **{name: value[i] for name, value in values.items()},
        )
        for i, blocks in enumerate(depth)
    )


def one_per_stage(name: str, value: Any, stages: int) -> tuple:
    """`value` as a tuple with one entry per stage; ValueError for a tuple of another length."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * stages
    if len(values) != stages:
        raise ValueError(
            f"{name} must be one value or a tuple with one for each of the {stages} stages in depth; "
            f"got {name}={value!r}"
        )
    return values


class ChanLayerNorm(nn.Module):
    """Layer norm over the channels of each pixel. (Not nn.LayerNorm: the parameters are named g and b.)"""

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Float[Tensor, "b c x y"]) -> Float[Tensor, "b c x y"]:
        var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) / (var + self.eps).sqrt() * self.g + self.b


class PEG(nn.Module):
    """Position encoding generator: a depthwise 3×3 convolution with a residual (https://arxiv.org/abs/2102.10882)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Float[Tensor, "b c x y"]) -> Float[Tensor, "b c x y"]:
        return self.proj(x) + x


class FeedForward(nn.Module):
    """Pre-norm two-layer MLP per pixel. (`net`: the package names its layers net.0, net.1 and net.4.)"""

    def __init__(self, dim: int, *, expansion_factor: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            ChanLayerNorm(dim),
            nn.Conv2d(dim, expansion_factor * dim, 1),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(expansion_factor * dim, dim, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: Float[Tensor, "b c x y"]) -> Float[Tensor, "b c x y"]:
        return self.net(x)


def attend(
    q: Float[Tensor, "b h i k"],
    k: Float[Tensor, "b h j k"],
    v: Float[Tensor, "b h j v"],
    *,
    dropout: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b h i v"]:
    """Softmax attention with scale k^-½ and dropout of the weights."""
    logits = torch.einsum("bhik,bhjk->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bhjv->bhiv", dropout(logits.softmax(dim=-1)), v)


class ScalableSelfAttention(nn.Module):
    """Global attention whose keys and values come from r×r patches (section 3.2).

    Rows and columns that do not fill a patch are left out of the keys, as in the package.
    """

    def __init__(
        self, dim: int, *, heads: int, dim_key: int, dim_value: int, reduction_factor: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.norm = ChanLayerNorm(dim)
        self.to_q = nn.Conv2d(dim, heads * dim_key, 1, bias=False)
        self.to_k = nn.Conv2d(dim, heads * dim_key, reduction_factor, stride=reduction_factor, bias=False)
        self.to_v = nn.Conv2d(dim, heads * dim_value, reduction_factor, stride=reduction_factor, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_value, dim, 1), nn.Dropout(dropout))

    def forward(self, x: Float[Tensor, "b c x y"]) -> Float[Tensor, "b c x y"]:
        height = x.shape[2]
        x = self.norm(x)
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        q, k, v = (rearrange(t, "b (h k) x y -> b h (x y) k", h=self.heads) for t in (q, k, v))
        out = attend(q, k, v, dropout=self.dropout)
        return self.to_out(rearrange(out, "b h (x y) v -> b (h v) x y", x=height))


class InteractiveWindowedSelfAttention(nn.Module):
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
    ) -> None:
        super().__init__()
        self.heads = heads
        self.window_size = window_size
        self.dropout = nn.Dropout(dropout)
        self.norm = ChanLayerNorm(dim)
        self.local_interactive_module = nn.Conv2d(heads * dim_value, heads * dim_value, 3, padding=1)
        self.to_q = nn.Conv2d(dim, heads * dim_key, 1, bias=False)
        self.to_k = nn.Conv2d(dim, heads * dim_key, 1, bias=False)
        self.to_v = nn.Conv2d(dim, heads * dim_value, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_value, dim, 1), nn.Dropout(dropout))

    def forward(self, x: Float[Tensor, "b c x y"]) -> Float[Tensor, "b c x y"]:
        height, width = x.shape[2:]
        w1, w2 = self.window_size or height, self.window_size or width
        x = self.norm(x)
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        local = self.local_interactive_module(v)
        q, k, v = (
            rearrange(t, "b (h k) (x w1) (y w2) -> (b x y) h (w1 w2) k", h=self.heads, w1=w1, w2=w2)
            for t in (q, k, v)
        )
        out = attend(q, k, v, dropout=self.dropout)
        out = rearrange(
            out,
            "(b x y) h (w1 w2) v -> b (h v) (x w1) (y w2)",
            x=height // w1,
            y=width // w2,
            w1=w1,
        )
        return self.to_out(out + local)


class Block(nn.ModuleList):
    """Global attention, then windows, with a feed-forward before the windows and not after them.

    That order contradicts the paper; every published checkpoint depends on it. (ModuleList: the package names
    the parts 0 to 4; slot 2 has parameters only in the first block of a stage.)
    """

    def __init__(self, stage: StageConfig, *, first: bool) -> None:
        dim, heads, dropout = stage.dim, stage.heads, stage.dropout
        ssa = ScalableSelfAttention(
            dim,
            heads=heads,
            dim_key=stage.ssa_dim_key,
            dim_value=stage.ssa_dim_value,
            reduction_factor=stage.reduction_factor,
            dropout=dropout,
        )
        ff1 = FeedForward(dim, expansion_factor=stage.ff_expansion_factor, dropout=dropout)
        peg = PEG(dim) if first else nn.Identity()
        ff2 = FeedForward(dim, expansion_factor=stage.ff_expansion_factor, dropout=dropout)
        iwsa = InteractiveWindowedSelfAttention(
            dim,
            heads=heads,
            dim_key=stage.iwsa_dim_key,
            dim_value=stage.iwsa_dim_value,
            window_size=stage.window_size,
            dropout=dropout,
        )
        super().__init__([ssa, ff1, peg, ff2, iwsa])

    def forward(self, x: Float[Tensor, "b c x y"]) -> Float[Tensor, "b c x y"]:
        ssa, ff1, peg, ff2, iwsa = self
        x = x + ssa(x)
        x = x + ff1(x)
        x = peg(x)
        x = x + ff2(x)
        x = x + iwsa(x)
        return x


class Stage(nn.Module):
    """A stack of blocks and, except in the last stage, a norm."""

    def __init__(self, stage: StageConfig, *, norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(stage, first=i == 0) for i in range(stage.depth))
        self.norm = ChanLayerNorm(stage.dim) if norm else nn.Identity()

    def forward(self, x: Float[Tensor, "b c x y"]) -> Float[Tensor, "b c x y"]:
        for block in self.layers:
            x = block(x)
        return self.norm(x)


class Downsample(nn.Module):
    """Halves the map, rounding up. (A module: the package names its part `conv`.)"""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d z w"]:
        return self.conv(x)


class ScalableViT(nn.Module):
    """A pyramid of stages and a linear classifier. Each stage halves the resolution and doubles the channels."""

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        depth: Sequence[int],
        heads: int | Sequence[int],
        reduction_factor: int | Sequence[int],
        window_size: int | Sequence[int | None] | None = None,
        iwsa_dim_key: int | Sequence[int] = 32,
        iwsa_dim_value: int | Sequence[int] = 32,
        ssa_dim_key: int | Sequence[int] = 32,
        ssa_dim_value: int | Sequence[int] = 32,
        ff_expansion_factor: int = 4,
        channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_integers(1, num_classes=num_classes, channels=channels)
        self.channels = channels
        self.stages = build_stages(
            dim,
            depth,
            ff_expansion_factor,
            dropout,
            heads=heads,
            reduction_factor=reduction_factor,
            window_size=window_size,
            iwsa_dim_key=iwsa_dim_key,
            iwsa_dim_value=iwsa_dim_value,
            ssa_dim_key=ssa_dim_key,
            ssa_dim_value=ssa_dim_value,
        )
        last = len(self.stages) - 1
        self.to_patches = nn.Conv2d(channels, dim, 7, stride=4, padding=3)
        # Pairs of a stage and what follows it, because the package names them layers.*.0 and layers.*.1.
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Stage(stage, norm=i < last),
                    Downsample(stage.dim, 2 * stage.dim) if i < last else nn.Identity(),
                ]
            )
            for i, stage in enumerate(self.stages)
        )
        # Sequential with an empty slot: the package's mean over the map is layer 0.
        self.mlp_head = nn.Sequential(
            nn.Identity(),
            nn.LayerNorm(self.stages[-1].dim),
            nn.Linear(self.stages[-1].dim, num_classes),
        )

    def forward(self, img: Float[Tensor, "b c height width"]) -> Float[Tensor, "b classes"]:
        """Logits; see `jaxmodels.ScalableViT`."""
        return self.mlp_head(self.features(img)[-1].mean(dim=(2, 3)))

    def features(self, img: Float[Tensor, "b c height width"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """The output of every stage, finest first."""
        self._check(img)
        x = self.to_patches(img)
        features = []
        for stage, downsample in map(nn.Module.children, self.layers):
            features.append(stage(x))
            x = downsample(features[-1])
        return tuple(features)

    def _check(self, img: Tensor) -> None:
        require_images("img", img, self.channels)
        for name, size in zip(("height", "width"), img.shape[2:], strict=True):
            require_integer(f"image {name}", size, minimum=1)
            for i, stage in enumerate(self.stages):
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
