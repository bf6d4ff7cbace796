"""A vision transformer with the conditional computation of CoLT5 (https://arxiv.org/abs/2303.09752).

Every token takes a light branch; the tokens that a router selects take a heavy branch as well. The model is
CoLT5-attention's own; no paper trains it. The PyTorch twin is `torch_reference/colt5.py`; the two files are
meant to be read side by side.

Shapes: b batch, n tokens (of an image or of a window), d model width, h heads, e head width, i/j query/key
position, r routes (independent selections), k selected tokens, w window side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from jaxmodels.checks import (
    lists_to_tuples,
    require_bool,
    require_divisible,
    require_height_width,
    require_images,
    require_integer,
    require_integer_fields,
)
from jaxmodels.nn import (
    AttentionModule,
    LayerNorm,
    LayerOptions,
    Linear,
    Model,
    RematModule,
    at_least_float32,
    attend,
    gelu,
    l2_normalize,
    promote,
    rematerialized,
    sincos_2d,
    uniform_fan_in,
)
from jaxmodels.nn.coordinate_descent import CoordinateDescentRouter, Routed, check_router_options


@dataclass(frozen=True, kw_only=True)
class ConditionalRoutedViTConfig:
    """Hyperparameters with the names and defaults of CoLT5-attention's `ConditionalRoutedViT`.

    Its kernel switches `flash_attn` and `router_use_triton` are left out. A router is disabled when it may
    select every token: then all tokens take the heavy branch. A wrong value raises ValueError.
    """

    image_size: int | tuple[int, int]  # nominal sides in pixels; other sizes that windows divide work as well
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int  # a multiple of 4, for the position table
    depth: int
    attn_num_heavy_tokens_q: int  # per window
    attn_num_heavy_tokens_kv: int  # per window and route
    attn_heavy_dim_head: int
    attn_heavy_heads: int
    attn_light_dim_head: int
    attn_light_heads: int
    attn_light_window_size: int  # side of a window, in patches; no attention crosses its border
    ff_num_heavy_tokens: int  # per image
    ff_heavy_mult: float  # hidden width of the heavy feed-forward, in units of dim
    ff_light_mult: float
    channels: int = 3
    router_straight_through: bool = True  # gates are 1, with the gradient of the soft top-k
    router_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)  # any of ROUTER_OPTIONS
    attn_num_routed_kv: int = 1  # routes of the context, among which the heavy heads are divided
    default_coor_descent_eps: float = 1.0  # unless router_kwargs has an eps
    # The order of tokens with equal scores, which are common: the soft top-k gives many tokens exactly 1.
    # By similarity to the routing vector, or by position.
    tie_break: Literal["similarity", "index"] = "similarity"

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        require_integer_fields(self, depth=0, dim=8)  # dim=4 would divide zero by zero in the position table
        if self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4, for the position table; got dim={self.dim}")
        for name in ("ff_heavy_mult", "ff_light_mult"):
            self.hidden_dim(name)
        require_divisible(
            "attn_heavy_heads", self.attn_heavy_heads, "attn_num_routed_kv", self.attn_num_routed_kv
        )
        self.check_sides("image_size", require_height_width("image_size", self.image_size, minimum=1))
        require_bool("router_straight_through", self.router_straight_through)
        if self.tie_break not in ("similarity", "index"):
            raise ValueError(f'tie_break must be "similarity" or "index"; got tie_break={self.tie_break!r}')
        if not isinstance(self.router_kwargs, Mapping):
            raise ValueError(f"router_kwargs must be a mapping; got router_kwargs={self.router_kwargs!r}")
        object.__setattr__(self, "router_kwargs", dict(self.router_kwargs))  # a copy: the caller's may change
        check_router_options({"eps": self.default_coor_descent_eps, **self.router_kwargs})

    @property
    def patch_sides(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return require_height_width("patch_size", self.patch_size, minimum=1)

    @property
    def router_options(self) -> dict[str, Any]:
        """Options of all routers: `router_kwargs` and the fields that concern them."""
        return {
            "eps": self.default_coor_descent_eps,
            **self.router_kwargs,
            "straight_through": self.router_straight_through,
            "tie_break": self.tie_break,
        }

    def hidden_dim(self, name: str) -> int:
        """Hidden width of the feed-forward whose multiplier is the field `name`: int(dim · mult)."""
        mult = getattr(self, name)
        is_number = isinstance(mult, int | float) and not isinstance(mult, bool)
        if not is_number or not 1 <= self.dim * mult < float("inf"):
            raise ValueError(f"int(dim * {name}) must be ≥ 1; got dim={self.dim}, {name}={mult!r}")
        return int(self.dim * mult)

    def check_sides(self, name: str, sides: tuple[int, int]) -> None:
        """ValueError unless images of these sides are divided by patches, and the patches by windows."""
        for axis, side, patch in zip(("height", "width"), sides, self.patch_sides, strict=True):
            require_integer(f"{name} {axis}", side, minimum=1)
            require_divisible(f"{name} {axis}", side, f"patch_size {axis}", patch)
            window = self.attn_light_window_size
            require_divisible(f"{name} {axis} in patches", side // patch, "attn_light_window_size", window)


class RMSNorm(nnx.Module):
    """√d · γ · x / max(‖x‖, 1e-12): the floor is on the norm, not inside the root as in Flax."""

    def __init__(self, dim: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.gamma = nnx.Param(jnp.ones(dim, param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x, gamma = promote(x, self.gamma[...], dtype=self.dtype)
        normed = l2_normalize(at_least_float32(x)) * x.shape[-1] ** 0.5
        return normed.astype(x.dtype) * jnp.broadcast_to(gamma, x.shape)


class FeedForward(nnx.Module):
    """Pre-norm two-layer MLP."""

    def __init__(self, dim: int, hidden_dim: int, **layer: Unpack[LayerOptions]) -> None:
        self.norm = RMSNorm(dim, **layer)
        self.up = Linear(dim, hidden_dim, **layer)
        self.down = Linear(hidden_dim, dim, **layer)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.down(gelu(self.up(self.norm(x))))


class SelfAttention(AttentionModule):
    """Pre-norm multi-head self-attention without biases: the light branch, within one window."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, **layer: Unpack[LayerOptions]) -> None:
        self.heads = heads
        self.norm = RMSNorm(dim, **layer)
        self.to_qkv = Linear(dim, 3 * heads * dim_head, use_bias=False, **layer)
        self.to_out = Linear(heads * dim_head, dim, use_bias=False, **layer)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        q, k, v = jnp.split(self.to_qkv(self.norm(x)), 3, axis=-1)  # b n (h e)
        q, k, v = (rearrange(t, "b n (h e) -> b h n e", h=self.heads) for t in (q, k, v))
        out = attend(q, k, v, implementation=self.attention)  # b h n e
        return self.to_out(rearrange(out, "b h n e -> b n (h e)"))


class Attention(AttentionModule):
    """Pre-norm attention of routed queries to routed tokens and a learned null pair: the heavy branch.

    Head i attends to the tokens of route i // (heads / routes).
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, **layer: Unpack[LayerOptions]) -> None:
        param_dtype, rngs = layer["param_dtype"], layer["rngs"]
        self.heads = heads
        self.norm = RMSNorm(dim, **layer)
        self.null_kv = nnx.Param(jax.random.normal(rngs.params(), (2, heads, dim_head), param_dtype))
        self.to_q = Linear(dim, heads * dim_head, use_bias=False, **layer)
        # Per head: its key, then its value.
        self.to_kv = nnx.Param(uniform_fan_in(dim)(rngs.params(), (dim, heads, 2 * dim_head), param_dtype))
        self.to_out = Linear(heads * dim_head, dim, use_bias=False, **layer)

    def __call__(
        self,
        x: Float[Array, "b i d"],
        context: Float[Array, "b r j d"],
        scores: Float[Array, "b r j"],
    ) -> Float[Array, "b i d"]:
        b, r, _, _ = context.shape
        q = rearrange(self.to_q(self.norm(x)), "b i (h e) -> b h i e", h=self.heads)
        # One axis of rows and one of columns: see `jaxmodels.nn.by_rows`.
        kernel = rearrange(self.to_kv[...].astype(q.dtype), "d (r h) e -> r d (h e)", r=r)
        rows = rearrange(self.norm(context), "b r j d -> r (b j) d")
        kv = jnp.einsum("rnd,rdf->rnf", rows, kernel)
        k, v = rearrange(kv, "r (b j) (h kv e) -> kv b r h j e", b=b, kv=2, h=self.heads // r)
        v = v * scores[:, :, None, :, None]  # only here does the router of the context get a gradient
        null_k, null_v = repeat(self.null_kv[...].astype(q.dtype), "kv h e -> kv b h 1 e", b=b)
        k = jnp.concatenate([null_k, rearrange(k, "b r h j e -> b (r h) j e")], axis=2)
        v = jnp.concatenate([null_v, rearrange(v, "b r h j e -> b (r h) j e")], axis=2)
        out = attend(q, k, v, implementation=self.attention)  # b h i e
        return self.to_out(rearrange(out, "b h i e -> b i (h e)"))


class ConditionalRoutedImageAttention(nnx.Module):
    """x + light attention within every window + heavy attention from its routed queries to routed context.

    A token that is not routed as a query gets a learned vector for its heavy output.
    """

    def __init__(self, config: ConditionalRoutedViTConfig, **layer: Unpack[LayerOptions]) -> None:
        dim, param_dtype, rngs = config.dim, layer["param_dtype"], layer["rngs"]
        router: dict[str, Any] = config.router_options | {"param_dtype": param_dtype, "rngs": rngs}
        self.window_size = config.attn_light_window_size
        self.light_attn = SelfAttention(
            dim, heads=config.attn_light_heads, dim_head=config.attn_light_dim_head, **layer
        )
        self.null_q_token = nnx.Param(jax.random.normal(rngs.params(), (dim,), param_dtype))
        self.q_router = CoordinateDescentRouter(dim, num_tokens=config.attn_num_heavy_tokens_q, **router)
        self.kv_router = CoordinateDescentRouter(
            dim, num_tokens=config.attn_num_heavy_tokens_kv, num_routes=config.attn_num_routed_kv, **router
        )
        self.heavy_attn = Attention(
            dim, heads=config.attn_heavy_heads, dim_head=config.attn_heavy_dim_head, **layer
        )

    def __call__(
        self,
        x: Float[Array, "b height width d"],
        q_indices: Int[Array, "windows 1 kq"] | None = None,
        kv_indices: Int[Array, "windows r kkv"] | None = None,
    ) -> Float[Array, "b height width d"]:
        _, height, width, _ = x.shape
        w = self.window_size
        x = rearrange(x, "b (h w1) (w w2) d -> (b h w) (w1 w2) d", w1=w, w2=w)
        out = x + self.light_attn(x)  # b n d; from here on b counts windows
        queries = self.q_router(x, q_indices)
        context = self.kv_router(x, kv_indices)
        heavy = self.heavy_attn(queries.tokens[:, 0], context.tokens, context.scores)
        heavy = heavy * queries.scores[:, 0, :, None]
        if queries.indices is None:
            out = out + heavy
        else:  # heavy rows are added in place, on top of the residual: XLA would recompute a chain of sums
            indices = queries.indices[:, 0]
            unrouted = add_at(jnp.ones_like(out[..., :1]), indices, -1)
            out = out + unrouted * self.null_q_token[None, None].astype(out.dtype)
            out = add_at(out, indices, heavy)
        return rearrange(
            out, "(b h w) (w1 w2) d -> b (h w1) (w w2) d", h=height // w, w=width // w, w1=w, w2=w
        )


class ConditionalRoutedFeedForward(nnx.Module):
    """x + a light MLP of every token + a heavy one of the routed tokens of each image."""

    def __init__(self, config: ConditionalRoutedViTConfig, **layer: Unpack[LayerOptions]) -> None:
        dim, param_dtype, rngs = config.dim, layer["param_dtype"], layer["rngs"]
        router: dict[str, Any] = config.router_options | {"param_dtype": param_dtype, "rngs": rngs}
        self.router = CoordinateDescentRouter(dim, num_tokens=config.ff_num_heavy_tokens, **router)
        self.light_ff = FeedForward(dim, config.hidden_dim("ff_light_mult"), **layer)
        self.heavy_ff = FeedForward(dim, config.hidden_dim("ff_heavy_mult"), **layer)

    def __call__(
        self, x: Float[Array, "b n d"], indices: Int[Array, "b 1 k"] | None = None
    ) -> Float[Array, "b n d"]:
        out = x + self.light_ff(x)
        routed = self.router(x, indices)
        heavy = self.heavy_ff(routed.tokens[:, 0]) * routed.scores[:, 0, :, None]
        if routed.indices is None:
            return out + heavy
        return add_at(out, routed.indices[:, 0], heavy)


def add_at(
    x: Float[Array, "b n d"], indices: Int[Array, "b k"], rows: Float[Array, "b k d"] | float
) -> Float[Array, "b n d"]:
    """Adds `rows` to the tokens at `indices`, which are distinct, of each sample."""
    batch = jnp.arange(x.shape[0])[:, None]
    return x.at[batch, indices].add(rows, mode="promise_in_bounds", unique_indices=True)


class Block(RematModule):
    """Routed attention, then feed-forward; both include the residual."""

    def __init__(self, config: ConditionalRoutedViTConfig, **layer: Unpack[LayerOptions]) -> None:
        self.attn = ConditionalRoutedImageAttention(config, **layer)
        self.ff = ConditionalRoutedFeedForward(config, **layer)

    @rematerialized
    def __call__(
        self, x: Float[Array, "b height width d"], routing: Sequence[Array | None] = (None, None, None)
    ) -> Float[Array, "b height width d"]:
        q_indices, kv_indices, ff_indices = routing
        x = self.attn(x, q_indices, kv_indices)
        tokens = self.ff(rearrange(x, "b h w d -> b (h w) d"), ff_indices)
        return rearrange(tokens, "b (h w) d -> b h w d", h=x.shape[1])


class Transformer(nnx.Module):
    """A stack of blocks."""

    def __init__(self, config: ConditionalRoutedViTConfig, **layer: Unpack[LayerOptions]) -> None:
        self.blocks = nnx.List([Block(config, **layer) for _ in range(config.depth)])

    def __call__(
        self, x: Float[Array, "b height width d"], routing: Sequence[Array | None] | None = None
    ) -> Float[Array, "b height width d"]:
        for i, block in enumerate(self.blocks):
            x = block(x) if routing is None else block(x, routing[3 * i : 3 * i + 3])
        return x


class ConditionalRoutedViT(Model):
    """Vision transformer that spends a heavy branch on routed tokens only; mean pooling, no class token.

    It has no dropout. A call accepts `rngs`, as with every model, and ignores it.

    Args:
      config: sizes and options.
      dtype: type of the computation, by default that of images and parameters; at least float32 for routing.
      param_dtype: type of fresh parameters.
      rngs: `params` seeds the initial weights.
    """

    def __init__(
        self,
        config: ConditionalRoutedViTConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        layer: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        patch_dim = config.channels * config.patch_sides[0] * config.patch_sides[1]
        self.patch_norm = LayerNorm(patch_dim, **layer)
        self.patch_to_token = Linear(patch_dim, config.dim, **layer)
        self.token_norm = LayerNorm(config.dim, **layer)
        self.transformer = Transformer(config, **layer)
        self.head_norm = LayerNorm(config.dim, **layer)
        self.linear_head = Linear(config.dim, config.num_classes, **layer)

    def __call__(
        self,
        images: Float[Array, "b height width c"],
        routing: Sequence[Int[Array, "_ _ _"] | None] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b classes"]:
        """Returns the logits.

        Args:
          images: sides are multiples of the patch's times the window's; they need not be `image_size`.
          routing: replaces the routers' selections. One entry per router, in the order of `routers`: the
            indices of the tokens to select, distinct and in range, or None for the router's own selection.

        Raises:
          ValueError: a shape that does not fit the configuration, or a wrong number of entries in `routing`.
        """
        self._check(images, routing)
        p1, p2 = self.config.patch_sides
        patches = rearrange(images, "b (h p1) (w p2) c -> b h w (p1 p2 c)", p1=p1, p2=p2)
        x = self.token_norm(self.patch_to_token(self.patch_norm(patches)))  # b h w d
        _, h, w, d = x.shape
        x = x + sincos_2d(h, w, d, dtype=x.dtype)[None]
        x = self.transformer(x, routing)
        return self.linear_head(self.head_norm(x.mean(axis=(1, 2))))

    @property
    def routers(self) -> list[CoordinateDescentRouter]:
        """The routers in the order of their calls: queries, context and feed-forward of every block."""
        return [
            router
            for block in self.transformer.blocks
            for router in (block.attn.q_router, block.attn.kv_router, block.ff.router)
        ]

    def routing(self, images: Float[Array, "b height width c"]) -> list[Routed]:
        """The selection of each router, in the order of `routers`."""
        forward = nnx.capture(type(self).__call__, nnx.Intermediate, method_outputs=nnx.Intermediate)
        _, captured = forward(self, images)
        blocks: Any = [captured["transformer"]["blocks"][i] for i in range(self.config.depth)]
        return [
            router["__call__"][0]
            for block in blocks
            for router in (block["attn"]["q_router"], block["attn"]["kv_router"], block["ff"]["router"])
        ]

    def _check(self, images: Array, routing: Sequence[Array | None] | None) -> None:
        require_images(images, self.config.channels)
        self.config.check_sides("image", (images.shape[1], images.shape[2]))
        if routing is not None and len(routing) != len(self.routers):
            raise ValueError(
                f"routing must have an entry for each of the {len(self.routers)} routers; got {len(routing)}"
            )
