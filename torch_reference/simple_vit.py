"""SimpleViT: the plain ViT baseline (https://arxiv.org/abs/2205.01580) with patch dropout (https://arxiv.org/abs/2212.00794).

Parameter names and shapes are those of vit-pytorch 1.26.11 (`simple_vit_with_patch_dropout`): its state_dict
loads here unchanged. Classes that exist only to keep those names say so.

Shapes: b batch, n tokens (image patches), d model width, h heads, k head width, p patch area · channels.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from torch_reference.checks import (
    require_divisible,
    require_height_width,
    require_images,
    require_integer,
    require_integers,
    require_rate,
)
from torch_reference.positions import sincos_2d


class PatchDropout(nn.Module):
    """Keeps a random choice of each image's tokens, without replacement; only in training mode."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, inputs: Float[Tensor, "b n d"]) -> Float[Tensor, "b kept d"]:
        if not self.training or self.rate == 0:
            return inputs
        b, n, _ = inputs.shape
        noise = torch.randn(b, n, device=inputs.device)
        kept = noise.topk(max(1, int(n * (1 - self.rate))), dim=-1).indices  # b kept
        return inputs.take_along_dim(kept[..., None], dim=1)


class Attention(nn.Module):
    """Pre-norm multi-head self-attention without biases."""

    def __init__(self, dim: int, *, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=-1)  # b n (h k)
        q, k, v = (rearrange(t, "b n (h k) -> b h n k", h=self.heads) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)  # b h n k
        return self.to_out(rearrange(out, "b h n k -> b n (h k)"))


class FeedForward(nn.Module):
    """Pre-norm two-layer MLP. (`net`: the package names its layers net.0, net.1 and net.3.)"""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.net(x)


class Block(nn.ModuleList):
    """Attention and feed-forward, each with a residual. (ModuleList: the package names them 0 and 1.)"""

    def __init__(self, dim: int, *, heads: int, dim_head: int, mlp_dim: int) -> None:
        super().__init__([Attention(dim, heads=heads, dim_head=dim_head), FeedForward(dim, mlp_dim)])

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        attn, ff = self
        x = x + attn(x)
        x = x + ff(x)
        return x


class Transformer(nn.Module):
    """A stack of blocks and a final norm."""

    def __init__(self, dim: int, *, depth: int, heads: int, dim_head: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            Block(dim, heads=heads, dim_head=dim_head, mlp_dim=mlp_dim) for _ in range(depth)
        )

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        for block in self.layers:
            x = block(x)
        return self.norm(x)


class SimpleViT(nn.Module):
    """Vision transformer with fixed sin-cos positions and mean pooling."""

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        patch_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        _check_arguments(image_size, patch_size, dim, patch_dropout)
        require_integers(1, num_classes=num_classes, heads=heads, mlp_dim=mlp_dim)
        require_integers(1, channels=channels, dim_head=dim_head)
        require_integer("depth", depth, minimum=0)
        self.channels = channels
        self.patch_size = height, width = require_height_width("patch_size", patch_size, minimum=1)
        # Sequential with an empty slot: the package's patch rearrangement is layer 0.
        self.to_patch_embedding = nn.Sequential(
            nn.Identity(),
            nn.LayerNorm(channels * height * width),
            nn.Linear(channels * height * width, dim),
            nn.LayerNorm(dim),
        )
        self.patch_dropout = PatchDropout(patch_dropout)
        self.transformer = Transformer(dim, depth=depth, heads=heads, dim_head=dim_head, mlp_dim=mlp_dim)
        self.linear_head = nn.Linear(dim, num_classes)

    def forward(self, img: Float[Tensor, "b c height width"]) -> Float[Tensor, "b classes"]:
        """Logits; see `jaxmodels.SimpleViT`."""
        return self.linear_head(self.tokens(img).mean(dim=1))

    def tokens(self, img: Float[Tensor, "b c height width"]) -> Float[Tensor, "b n d"]:
        """The normalised tokens after the last block."""
        self._check(img)
        p1, p2 = self.patch_size
        patches = rearrange(img, "b c (h p1) (w p2) -> b h w (p1 p2 c)", p1=p1, p2=p2)
        x = self.to_patch_embedding(patches)  # b h w d
        _, h, w, d = x.shape
        x = x + sincos_2d(h, w, d, dtype=x.dtype, device=x.device)
        x = self.patch_dropout(rearrange(x, "b h w d -> b (h w) d"))
        return self.transformer(x)

    def _check(self, img: Tensor) -> None:
        require_images("img", img, self.channels)
        for name, size, patch in zip(("height", "width"), img.shape[2:], self.patch_size, strict=True):
            require_integer(f"image {name}", size, minimum=1)
            require_divisible(f"image {name}", size, f"patch {name}", patch)


class TokenExtractor(nn.Module):
    """Returns a SimpleViT's tokens when called, as MaMMUT expects of its image encoder.

    (`vit`: the package's `Extractor`, which this replaces, gives the keys of the model this prefix.)
    """

    def __init__(self, vit: SimpleViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, img: Float[Tensor, "b c height width"]) -> Float[Tensor, "b n d"]:
        return self.vit.tokens(img)


def _check_arguments(image_size: object, patch_size: object, dim: int, patch_dropout: float) -> None:
    image = require_height_width("image_size", image_size, minimum=1)
    patch = require_height_width("patch_size", patch_size, minimum=1)
    for name, size, side in zip(("height", "width"), image, patch, strict=True):
        require_divisible(f"image_size ({name})", size, f"patch_size ({name})", side)
    require_integer("dim", dim, minimum=8)  # 4 would divide zero by zero in the position table
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4, for the position table; got dim={dim}")
    require_rate("patch_dropout", patch_dropout)
