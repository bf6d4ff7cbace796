"""A vision transformer with the conditional computation of CoLT5 (https://arxiv.org/abs/2303.09752).

Every token takes a light branch; the tokens that a router selects take a heavy branch as well. The model is
CoLT5-attention's own; no paper trains it. Parameter names and shapes are those of CoLT5-attention 0.11.2: its
state_dict loads here unchanged. Classes that exist only to keep those names say so.

Shapes: b batch, n tokens (of an image or of a window), d model width, h heads, e head width, i/j query/key
position, r routes (independent selections), k selected tokens, w window side.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from torch_reference.checks import (
    require_divisible,
    require_height_width,
    require_images,
    require_integer,
    require_integers,
)
from torch_reference.coordinate_descent import CoordinateDescentRouter, Routed, check_router_options
from torch_reference.positions import sincos_2d


class RMSNorm(nn.Module):
    """√d · γ · x / max(‖x‖, 1e-12): the floor is on the norm, not inside the root."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        normed = F.normalize(x, dim=-1) * x.shape[-1] ** 0.5
        return normed * self.gamma


class FeedForward(nn.Sequential):
    """Pre-norm two-layer MLP. (A Sequential: the package names the layers 0, 1 and 3.)"""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(RMSNorm(dim), nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))


class SelfAttention(nn.Module):
    """Pre-norm multi-head self-attention without biases: the light branch, within one window."""

    def __init__(self, dim: int, *, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=-1)  # b n (h e)
        q, k, v = (rearrange(t, "b n (h e) -> b h n e", h=self.heads) for t in (q, k, v))
        out = attend(q, k, v)  # b h n e
        return self.to_out(rearrange(out, "b h n e -> b n (h e)"))


class Attention(nn.Module):
    """Pre-norm attention of routed queries to routed tokens and a learned null pair: the heavy branch.

    Head i attends to the tokens of route i // (heads / routes).
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, flash: bool) -> None:
        super().__init__()
        self.heads = heads
        self.flash = flash
        self.norm = RMSNorm(dim)
        self.null_kv = nn.Parameter(torch.randn(2, heads, dim_head))
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)  # per head: its key, then its value
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b i d"],
        context: Float[Tensor, "b r j d"],
        scores: Float[Tensor, "b r j"],
    ) -> Float[Tensor, "b i d"]:
        b, r, _, _ = context.shape
        q = rearrange(self.to_q(self.norm(x)), "b i (h e) -> b h i e", h=self.heads)
        kernel = rearrange(self.to_kv.weight, "(r h e) d -> r h e d", r=r, h=self.heads // r)
        kv = torch.einsum("brjd,rhed->brhje", self.norm(context), kernel)
        k, v = kv.chunk(2, dim=-1)
        v = v * scores[:, :, None, :, None]  # only here does the router of the context get a gradient
        null_k, null_v = repeat(self.null_kv, "kv h e -> kv b h 1 e", b=b)
        k = torch.cat([null_k, rearrange(k, "b r h j e -> b (r h) j e")], dim=2)
        v = torch.cat([null_v, rearrange(v, "b r h j e -> b (r h) j e")], dim=2)
        out = attend(q, k, v, flash=self.flash)  # b h i e
        return self.to_out(rearrange(out, "b h i e -> b i (h e)"))


def attend(
    q: Float[Tensor, "b h i e"],
    k: Float[Tensor, "b h j e"],
    v: Float[Tensor, "b h j e"],
    *,
    flash: bool = False,
) -> Float[Tensor, "b h i e"]:
    """Softmax attention, with PyTorch's fused kernel if `flash`."""
    if flash:
        return F.scaled_dot_product_attention(q, k, v)
    logits = torch.einsum("bhie,bhje->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bhje->bhie", logits.softmax(dim=-1), v)


class ConditionalRoutedImageAttention(nn.Module):
    """x + light attention within every window + heavy attention from its routed queries to routed context.

    A token that is not routed as a query gets a learned vector for its heavy output.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heavy_tokens_q: int,
        num_heavy_tokens_kv: int,
        num_routed_kv: int,
        light_dim_head: int,
        light_heads: int,
        light_window_size: int,
        heavy_dim_head: int,
        heavy_heads: int,
        flash: bool,
        router: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.window_size = light_window_size
        self.light_attn = SelfAttention(dim, heads=light_heads, dim_head=light_dim_head)
        self.null_q_token = nn.Parameter(torch.randn(dim))
        self.q_router = CoordinateDescentRouter(dim, num_tokens=num_heavy_tokens_q, **router)
        self.kv_router = CoordinateDescentRouter(
            dim, num_tokens=num_heavy_tokens_kv, num_routes=num_routed_kv, **router
        )
        self.heavy_attn = Attention(dim, heads=heavy_heads, dim_head=heavy_dim_head, flash=flash)

    def forward(
        self,
        x: Float[Tensor, "b height width d"],
        q_indices: Int[Tensor, "windows 1 kq"] | None = None,
        kv_indices: Int[Tensor, "windows r kkv"] | None = None,
    ) -> Float[Tensor, "b height width d"]:
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
        else:
            indices = queries.indices[:, 0]
            unrouted = torch.ones_like(out[..., 0]).scatter(1, indices, 0)
            out = out + unrouted[..., None] * self.null_q_token
            out = add_at(out, indices, heavy)
        return rearrange(
            out, "(b h w) (w1 w2) d -> b (h w1) (w w2) d", h=height // w, w=width // w, w1=w, w2=w
        )


class ConditionalRoutedFeedForward(nn.Module):
    """x + a light MLP of every token + a heavy one of the routed tokens of each image."""

    def __init__(
        self,
        dim: int,
        *,
        num_heavy_tokens: int,
        light_hidden_dim: int,
        heavy_hidden_dim: int,
        router: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.router = CoordinateDescentRouter(dim, num_tokens=num_heavy_tokens, **router)
        self.light_ff = FeedForward(dim, light_hidden_dim)
        self.heavy_ff = FeedForward(dim, heavy_hidden_dim)

    def forward(
        self, x: Float[Tensor, "b n d"], indices: Int[Tensor, "b 1 k"] | None = None
    ) -> Float[Tensor, "b n d"]:
        out = x + self.light_ff(x)
        routed = self.router(x, indices)
        heavy = self.heavy_ff(routed.tokens[:, 0]) * routed.scores[:, 0, :, None]
        if routed.indices is None:
            return out + heavy
        return add_at(out, routed.indices[:, 0], heavy)


def add_at(
    x: Float[Tensor, "b n d"], indices: Int[Tensor, "b k"], rows: Float[Tensor, "b k d"]
) -> Float[Tensor, "b n d"]:
    """Adds `rows` to the tokens at `indices` of each sample."""
    batch = torch.arange(x.shape[0], device=x.device)[:, None]
    return x.index_put((batch, indices), rows.to(x.dtype), accumulate=True)


class Block(nn.ModuleList):
    """Routed attention, then feed-forward; both include the residual. (A list: the package has 0 and 1 here.)"""

    def __init__(
        self,
        dim: int,
        *,
        attn_args: Mapping[str, Any],
        ff_args: Mapping[str, Any],
        router: Mapping[str, Any],
    ) -> None:
        # The feed-forward first, so that the same seed draws the same weights as in the package.
        ff = ConditionalRoutedFeedForward(dim, **ff_args, router=router)
        attn = ConditionalRoutedImageAttention(dim, **attn_args, router=router)
        super().__init__([attn, ff])

    def forward(
        self, x: Float[Tensor, "b height width d"], routing: Sequence[Tensor | None] = (None, None, None)
    ) -> Float[Tensor, "b height width d"]:
        attn, ff = self
        q_indices, kv_indices, ff_indices = routing
        x = attn(x, q_indices, kv_indices)
        tokens = ff(rearrange(x, "b h w d -> b (h w) d"), ff_indices)
        return rearrange(tokens, "b (h w) d -> b h w d", h=x.shape[1])


class Transformer(nn.Module):
    """A stack of blocks. (`layers`: the package's name.)"""

    def __init__(self, dim: int, depth: int, **block: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(dim, **block) for _ in range(depth))

    def forward(
        self, x: Float[Tensor, "b height width d"], routing: Sequence[Tensor | None] | None = None
    ) -> Float[Tensor, "b height width d"]:
        for i, block in enumerate(self.layers):
            x = block(x) if routing is None else block(x, routing[3 * i : 3 * i + 3])
        return x


def hidden_dim(dim: int, name: str, mult: float) -> int:
    """Width of a hidden layer, int(dim · mult) as in the package; ValueError if that is not at least 1."""
    is_number = isinstance(mult, int | float) and not isinstance(mult, bool)
    if not is_number or not 1 <= dim * mult < float("inf"):
        raise ValueError(f"int(dim * {name}) must be an integer ≥ 1; got dim={dim}, {name}={mult!r}")
    return int(dim * mult)


def check_sizes(
    attn: Mapping[str, int], dim: int, depth: int, num_classes: int, channels: int, ff_num_heavy_tokens: int
) -> None:
    """ValueError unless the sizes of attention and of the model are in their range."""
    require_integers(1, **{f"attn_{name}": value for name, value in attn.items()})
    require_integers(1, num_classes=num_classes, channels=channels, ff_num_heavy_tokens=ff_num_heavy_tokens)
    require_integer("depth", depth, minimum=0)
    require_integer("dim", dim, minimum=8)  # 4 would divide zero by zero in the position table
    require_divisible("dim", dim, "the four parts of the position table", 4)
    require_divisible("attn_heavy_heads", attn["heavy_heads"], "attn_num_routed_kv", attn["num_routed_kv"])


def router_options(
    kwargs: Mapping[str, Any], eps: float, straight_through: bool, use_triton: bool, tie_break: str
) -> dict[str, Any]:
    """Options of all routers; ValueError for one that does not exist or is out of range."""
    if use_triton:
        raise ValueError(
            f"router_use_triton must be False, because there is no Triton kernel here; "
            f"got router_use_triton={use_triton!r}"
        )
    options = {"eps": eps, **kwargs}
    check_router_options(options)
    return options | {"straight_through": straight_through, "tie_break": tie_break}


class ConditionalRoutedViT(nn.Module):
    """Vision transformer that spends a heavy branch on routed tokens only; mean pooling, no class token.

    The arguments are those of CoLT5-attention's class, and `tie_break`: the order of tokens with equal scores,
    which are common, because the soft top-k gives many tokens exactly 1. "similarity" prefers the token most
    similar to the routing vector, "index" the first one. The package calls `torch.topk`, whose order is undefined.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_classes: int,
        dim: int,
        depth: int,
        attn_num_heavy_tokens_q: int,
        attn_num_heavy_tokens_kv: int,
        attn_heavy_dim_head: int,
        attn_heavy_heads: int,
        attn_light_dim_head: int,
        attn_light_heads: int,
        attn_light_window_size: int,
        ff_num_heavy_tokens: int,
        ff_heavy_mult: float,
        ff_light_mult: float,
        channels: int = 3,
        router_straight_through: bool = True,
        router_kwargs: Mapping[str, Any] = {},
        router_use_triton: bool = False,
        flash_attn: bool = True,
        attn_num_routed_kv: int = 1,
        default_coor_descent_eps: float = 1.0,
        tie_break: Literal["similarity", "index"] = "similarity",
    ) -> None:
        super().__init__()
        attn_args = {
            "num_heavy_tokens_q": attn_num_heavy_tokens_q,
            "num_heavy_tokens_kv": attn_num_heavy_tokens_kv,
            "num_routed_kv": attn_num_routed_kv,
            "light_dim_head": attn_light_dim_head,
            "light_heads": attn_light_heads,
            "light_window_size": attn_light_window_size,
            "heavy_dim_head": attn_heavy_dim_head,
            "heavy_heads": attn_heavy_heads,
        }
        check_sizes(attn_args, dim, depth, num_classes, channels, ff_num_heavy_tokens)
        self.channels, self.window_size = channels, attn_light_window_size
        self.patch_size = require_height_width("patch_size", patch_size, minimum=1)
        self._check_sides("image_size", require_height_width("image_size", image_size, minimum=1))
        ff_args = {
            "num_heavy_tokens": ff_num_heavy_tokens,
            "light_hidden_dim": hidden_dim(dim, "ff_light_mult", ff_light_mult),
            "heavy_hidden_dim": hidden_dim(dim, "ff_heavy_mult", ff_heavy_mult),
        }
        router = router_options(
            router_kwargs, default_coor_descent_eps, router_straight_through, router_use_triton, tie_break
        )

        patch_dim = channels * self.patch_size[0] * self.patch_size[1]
        # Empty slots: the package's patch rearrangement and its mean over the tokens are layers 0.
        self.to_patch_embedding = nn.Sequential(
            nn.Identity(), nn.LayerNorm(patch_dim), nn.Linear(patch_dim, dim), nn.LayerNorm(dim)
        )
        attn_args = attn_args | {"flash": flash_attn}
        self.transformer = Transformer(dim, depth, attn_args=attn_args, ff_args=ff_args, router=router)
        self.linear_head = nn.Sequential(nn.Identity(), nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(
        self, img: Float[Tensor, "b c height width"], routing: Sequence[Tensor | None] | None = None
    ) -> Float[Tensor, "b classes"]:
        """Logits; `routing` replaces the routers' choices. See `jaxmodels.ConditionalRoutedViT`."""
        self._check(img, routing)
        p1, p2 = self.patch_size
        patches = rearrange(img, "b c (h p1) (w p2) -> b h w (p1 p2 c)", p1=p1, p2=p2)
        x = self.to_patch_embedding(patches)  # b h w d
        _, h, w, d = x.shape
        x = x + sincos_2d(h, w, d, dtype=x.dtype, device=x.device)
        x = self.transformer(x, routing)
        return self.linear_head(x.mean(dim=(1, 2)))

    @property
    def routers(self) -> list[CoordinateDescentRouter]:
        """The routers in the order of their calls: queries, context and feed-forward of every block."""
        blocks: Any = self.transformer.layers
        return [router for attn, ff in blocks for router in (attn.q_router, attn.kv_router, ff.router)]

    @torch.no_grad()
    def routing(self, img: Float[Tensor, "b c height width"]) -> list[Routed]:
        """The selection of each router, in the order of `routers`."""
        selected: list[Routed] = []
        hooks = [
            router.register_forward_hook(lambda _module, _args, routed: selected.append(routed))
            for router in self.routers
        ]
        try:
            self(img)
        finally:
            for hook in hooks:
                hook.remove()
        return selected

    def _check(self, img: Tensor, routing: Sequence[Tensor | None] | None) -> None:
        require_images("img", img, self.channels)
        self._check_sides("image", (img.shape[2], img.shape[3]))
        if routing is not None and len(routing) != len(self.routers):
            raise ValueError(
                f"routing must have an entry for each of the {len(self.routers)} routers; got {len(routing)}"
            )

    def _check_sides(self, name: str, sides: tuple[int, int]) -> None:
        for axis, side, patch in zip(("height", "width"), sides, self.patch_size, strict=True):
            require_integer(f"{name} {axis}", side, minimum=1)
            require_divisible(f"{name} {axis}", side, f"patch_size {axis}", patch)
            require_divisible(
                f"{name} {axis} in patches", side // patch, "attn_light_window_size", self.window_size
            )
