"""GLOM: columns of part-whole levels that settle into agreement (Hinton 2021, https://arxiv.org/abs/2102.12627).

The PyTorch twin is `torch_reference/glom.py`; the two files are meant to be read side by side.

Shapes: b batch, n columns (image patches), l levels, d model width, g groups (one network per level),
i/j query/key column, t steps.
"""

from dataclasses import dataclass
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float

from jaxmodels.checks import (
    require_bool,
    require_divisible,
    require_images,
    require_integer,
    require_integer_fields,
    require_shape,
)
from jaxmodels.nn import (
    AttentionModule,
    Embed,
    LayerOptions,
    Linear,
    Model,
    at_least_float32,
    attend,
    gelu,
    l2_normalize,
    promote,
    uniform_fan_in,
)


# The logit of a column with itself, from the package: close to 0, so it weakens self-attention, not masks it.
SELF_SIMILARITY = -5e-4


@dataclass(frozen=True, kw_only=True)
class GlomConfig:
    """Hyperparameters with the names and defaults of glom-pytorch's `Glom`; ValueError for a wrong one."""

    dim: int = 512
    levels: int = 6
    image_size: int = 224  # side in pixels; sets the size of the position table and of the consensus mask
    patch_size: int = 14
    consensus_self: bool = False  # whether a column attends to itself with its true similarity
    local_consensus_radius: float = 0  # in patches; 0 means no limit

    def __post_init__(self) -> None:
        require_integer_fields(self, levels=2)  # the top-down path needs levels - 1 ≥ 1 networks
        require_divisible("image_size", self.image_size, "patch_size", self.patch_size)
        require_bool("consensus_self", self.consensus_self)
        radius = self.local_consensus_radius
        if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 <= radius < float("inf"):
            raise ValueError(
                f"local_consensus_radius must be a finite number ≥ 0; got local_consensus_radius={radius!r}"
            )


class GroupedLinear(nnx.Module):
    """One affine map per group. The twin uses a grouped 1×1 Conv1d."""

    def __init__(
        self,
        groups: int,
        in_features: int,
        out_features: int,
        *,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        init = uniform_fan_in(in_features)
        self.kernel = nnx.Param(init(rngs.params(), (groups, in_features, out_features), param_dtype))
        self.bias = nnx.Param(init(rngs.params(), (groups, out_features), param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "g b n i"]) -> Float[Array, "g b n o"]:
        x, kernel, bias = promote(x, self.kernel[...], self.bias[...], dtype=self.dtype)
        # One axis of rows: see `jaxmodels.nn.by_rows`.
        out = jnp.einsum("gri,gio->gro", rearrange(x, "g b n i -> g (b n) i"), kernel)
        # The gradient of the bias is a sum over all rows: of bfloat16, a GPU would add them up in bfloat16.
        out = (at_least_float32(out) + at_least_float32(bias)[:, None]).astype(x.dtype)
        return rearrange(out, "g (b n) o -> g b n o", b=x.shape[1])


class GroupedFeedForward(nnx.Module):
    """One two-layer MLP per group, hidden width mult · dim."""

    def __init__(self, *, dim: int, groups: int, mult: int = 4, **layer: Unpack[LayerOptions]) -> None:
        self.up = GroupedLinear(groups, dim, mult * dim, **layer)
        self.down = GroupedLinear(groups, mult * dim, dim, **layer)

    def __call__(self, levels: Float[Array, "g b n d"]) -> Float[Array, "g b n d"]:
        return self.down(gelu(self.up(levels)))


class ConsensusAttention(AttentionModule):
    """Attention between the columns of one level, without parameters: the states are queries, keys and values."""

    def __init__(
        self, num_patches_side: int, *, attend_self: bool = True, local_consensus_radius: float = 0
    ) -> None:
        self.num_patches_side = num_patches_side
        self.attend_self = attend_self
        self.local_consensus_radius = local_consensus_radius

    def __call__(self, levels: Float[Array, "l b n d"]) -> Float[Array, "l b n d"]:
        _, _, n, d = levels.shape
        keys, mask = l2_normalize(levels), None
        if self.local_consensus_radius > 0:
            mask = ~non_local_mask(self.num_patches_side, self.local_consensus_radius)
            mask = jnp.asarray(mask)[None, None]
        if self.attend_self:
            return attend(levels, keys, levels, mask=mask, implementation=self.attention)
        # Not `attend`: a fused kernel can hide logits or add n² numbers to them, but not replace the diagonal.
        logits = at_least_float32(jnp.einsum("lbid,lbjd->lbij", levels, keys)) * d**-0.5
        diagonal = jnp.eye(n, dtype=bool)
        logits = jnp.where(diagonal, jnp.asarray(SELF_SIMILARITY, logits.dtype), logits)
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(levels.dtype)
        return jnp.einsum("lbij,lbjd->lbid", weights, levels)


def non_local_mask(num_patches_side: int, radius: float) -> Bool[np.ndarray, "n n"]:
    """True where the distance of two columns in the square grid is above `radius` (Euclidean, in patches)."""
    grid = np.indices((num_patches_side, num_patches_side)).reshape(2, -1)
    square = np.square(grid[:, :, None] - grid[:, None, :]).sum(axis=0)
    return np.sqrt(square.astype(np.float32)) > np.float32(radius)  # float32, as PyTorch's cdist


class Glom(Model):
    """Updates the levels of all columns in parallel, step by step.

    A new state is the mean of the old state, the bottom-up and top-down networks, and the consensus of the columns.

    It has no dropout. A call accepts `rngs`, as with every model, and ignores it.

    Args:
      config: sizes and options.
      dtype: type of the computation; by default that of images and parameters together.
      param_dtype: type of fresh parameters.
      rngs: `params` seeds the initial weights.
    """

    def __init__(
        self,
        config: GlomConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        side = config.image_size // config.patch_size
        layer: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.image_to_tokens = Linear(3 * config.patch_size**2, config.dim, **layer)
        self.pos_emb = Embed(side**2, config.dim, **layer)
        self.init_levels = nnx.Param(
            jax.random.normal(rngs.params(), (config.levels, config.dim), param_dtype)
        )
        self.bottom_up = GroupedFeedForward(dim=config.dim, groups=config.levels, **layer)
        self.top_down = GroupedFeedForward(dim=config.dim, groups=config.levels - 1, **layer)
        self.attention = ConsensusAttention(
            side,
            attend_self=config.consensus_self,
            local_consensus_radius=config.local_consensus_radius,
        )

    def __call__(
        self,
        images: Float[Array, "b height width 3"],
        iters: int | None = None,
        levels: Float[Array, "b n l d"] | None = None,
        return_all: bool = False,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n l d"] | Float[Array, "t b n l d"]:
        """Runs `iters` steps (default: twice the number of levels).

        Args:
          images: sides are multiples of patch_size. Smaller or oblong images use the first rows of the position
            table, in raster order.
          iters: number of steps; 0 returns the initial state.
          levels: the state to continue from, for instance that of the previous video frame.
          return_all: return all states: entry k is the state after k steps.

        Raises:
          ValueError: a shape that does not fit the configuration, or negative `iters`.
        """
        config = self.config
        self._check(images, levels)
        iters = 2 * config.levels if iters is None else require_integer("iters", iters, minimum=0)

        p = config.patch_size
        tokens = rearrange(images, "b (h p1) (w p2) c -> b (h w) (p1 p2 c)", p1=p, p2=p)
        tokens = self.image_to_tokens(tokens)[None]  # 1 b n d
        b, n = tokens.shape[1:3]
        positions = self.pos_emb(jnp.arange(n)).astype(tokens.dtype)  # n d

        if levels is None:
            state = jnp.broadcast_to(self.init_levels[...][:, None, None], (config.levels, b, n, config.dim))
        else:
            state = rearrange(levels, "b n l d -> l b n d")
        state = state.astype(tokens.dtype)
        last, states = self.run_steps(state, tokens, positions, iters=iters, return_all=return_all)
        if states is None:
            return rearrange(last, "l b n d -> b n l d")
        return rearrange(jnp.concatenate([state[None], states]), "t l b n d -> t b n l d")

    def run_steps(
        self,
        state: Float[Array, "l b n d"],
        tokens: Float[Array, "1 b n d"],
        positions: Float[Array, "n d"],
        *,
        iters: int,
        return_all: bool,
    ) -> tuple[Float[Array, "l b n d"], Float[Array, "t l b n d"] | None]:
        """The state after `iters` steps and, with `return_all`, that after each of them: one compiled loop."""
        # The weights take the type of the computation once, not in every step.
        model = jax.tree.map(lambda weight: weight.astype(tokens.dtype), self)
        # The tokens do not change, so the bottom-up input of the first level is computed once.
        from_tokens = jax.tree.map(lambda x: x[:1], model.bottom_up)(tokens)
        upper_networks = jax.tree.map(lambda x: x[1:], model.bottom_up)

        def step(state: Float[Array, "l b n d"]) -> Float[Array, "l b n d"]:
            bottom_up = jnp.concatenate([from_tokens, upper_networks(state[:-1])])
            return model.update(state, bottom_up, positions)

        # Kept for the gradient: the results of matrix products; with `nnx.view(model, remat=True)` nothing.
        policies = jax.checkpoint_policies
        kept = policies.nothing_saveable if self.remat else policies.dots_saveable
        checkpointed = jax.checkpoint(step, policy=kept, prevent_cse=False)

        def scanned(state: Float[Array, "l b n d"], _: None) -> tuple[Array, Array | None]:
            state = checkpointed(state)
            return state, state if return_all else None

        return jax.lax.scan(scanned, state, length=iters)

    def update(
        self,
        state: Float[Array, "l b n d"],
        bottom_up: Float[Array, "l b n d"],
        positions: Float[Array, "n d"],
    ) -> Float[Array, "l b n d"]:
        """The next state: the mean of the old state, bottom-up, top-down and consensus."""
        # The top level has no top-down contribution.
        contributions = jnp.full((self.config.levels, 1, 1, 1), 4, state.dtype).at[-1].set(3)
        top_down = self.top_down(state[1:] + positions[None, None])
        top_down = jnp.pad(top_down, ((0, 1), (0, 0), (0, 0), (0, 0)))
        consensus = self.attention(state)
        return (state + bottom_up + top_down + consensus) / contributions

    def _check(self, images: Array, levels: Array | None) -> None:
        config = self.config
        require_images(images, channels=3)
        b, height, width, _ = images.shape
        require_divisible("image height", height, "patch_size", config.patch_size)
        require_divisible("image width", width, "patch_size", config.patch_size)
        side = config.image_size // config.patch_size
        h, w = height // config.patch_size, width // config.patch_size
        if h * w > side**2:
            raise ValueError(
                f"images must have at most (image_size / patch_size)² = {side**2} patches, "
                f"the rows of the position table; got {h}×{w} = {h * w}"
            )
        if config.local_consensus_radius > 0 and (h, w) != (side, side):
            raise ValueError(
                f"images must be image_size={config.image_size} square when local_consensus_radius > 0, "
                f"because the mask has that geometry; got {height}×{width}"
            )
        if levels is not None:
            require_shape("levels", levels, (b, h * w, config.levels, config.dim))
