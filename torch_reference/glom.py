"""GLOM: columns of part-whole levels that settle into agreement (Hinton 2021, https://arxiv.org/abs/2102.12627).

Parameter names and shapes are those of glom-pytorch 0.0.14: its state_dict loads here unchanged. Classes
that exist only to keep those names say so.

Shapes: b batch, n columns (image patches), l levels, d model width, g groups (one network per level),
i/j query/key column.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from torch_reference.checks import (
    require_divisible,
    require_images,
    require_integer,
    require_integers,
    require_shape,
)


# The logit of a column with itself, from the package: close to 0, so it weakens self-attention, not masks it.
SELF_SIMILARITY = -5e-4


class GroupedFeedForward(nn.Module):
    """One two-layer MLP per group, hidden width mult · dim. (`net`: the package names the layers net.1 and net.3.)"""

    def __init__(self, *, dim: int, groups: int, mult: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.net = nn.Sequential(
            nn.Identity(),
            nn.Conv1d(groups * dim, groups * mult * dim, 1, groups=groups),
            nn.GELU(),
            nn.Conv1d(groups * mult * dim, groups * dim, 1, groups=groups),
        )

    def forward(self, levels: Float[Tensor, "b n g d"]) -> Float[Tensor, "b n g d"]:
        # The package's Conv1d has the groups inside its channels.
        return rearrange(
            self.net(rearrange(levels, "b n g d -> b (g d) n")), "b (g d) n -> b n g d", g=self.groups
        )


class ConsensusAttention(nn.Module):
    """Attention between the columns of one level, without parameters: the states are queries, keys and values."""

    def __init__(
        self, num_patches_side: int, *, attend_self: bool = True, local_consensus_radius: float = 0
    ) -> None:
        super().__init__()
        self.attend_self = attend_self
        self.local_consensus_radius = local_consensus_radius
        if local_consensus_radius > 0:
            self.register_buffer("non_local_mask", non_local_mask(num_patches_side, local_consensus_radius))

    def forward(self, levels: Float[Tensor, "b n l d"]) -> Float[Tensor, "b n l d"]:
        _, n, _, d = levels.shape
        keys = F.normalize(levels, dim=-1)
        logits = torch.einsum("bild,bjld->blij", levels, keys) * d**-0.5
        if not self.attend_self:
            diagonal = torch.eye(n, dtype=torch.bool, device=levels.device)
            logits = logits.masked_fill(diagonal, SELF_SIMILARITY)
        if self.local_consensus_radius > 0:
            logits = logits.masked_fill(self.non_local_mask, -torch.finfo(logits.dtype).max)
        weights = logits.softmax(dim=-1)
        return torch.einsum("blij,bjld->bild", weights, levels)


def non_local_mask(num_patches_side: int, radius: float) -> Bool[Tensor, "1 n n"]:
    """True where the distance of two columns in the square grid is above `radius` (Euclidean, in patches)."""
    grid = torch.cartesian_prod(torch.arange(num_patches_side), torch.arange(num_patches_side))  # n 2
    square = (grid[:, None] - grid[None, :]).square().sum(dim=-1)
    return (square.float().sqrt() > radius)[None]


class Glom(nn.Module):
    """Updates the levels of all columns in parallel, step by step; see `jaxmodels.Glom`."""

    def __init__(
        self,
        *,
        dim: int = 512,
        levels: int = 6,
        image_size: int = 224,
        patch_size: int = 14,
        consensus_self: bool = False,
        local_consensus_radius: float = 0,
    ) -> None:
        super().__init__()
        require_integers(1, dim=dim, image_size=image_size, patch_size=patch_size)
        require_integer("levels", levels, minimum=2)
        require_divisible("image_size", image_size, "patch_size", patch_size)
        if local_consensus_radius < 0:
            raise ValueError(
                f"local_consensus_radius must be ≥ 0; got local_consensus_radius={local_consensus_radius!r}"
            )
        side = image_size // patch_size
        self.dim = dim
        self.levels = levels
        self.image_size = image_size
        self.patch_size = patch_size
        self.init_levels = nn.Parameter(torch.randn(levels, dim))
        # Sequential with an empty slot: the package's patch rearrangement is layer 0.
        self.image_to_tokens = nn.Sequential(nn.Identity(), nn.Linear(3 * patch_size**2, dim))
        self.pos_emb = nn.Embedding(side**2, dim)
        self.bottom_up = GroupedFeedForward(dim=dim, groups=levels)
        self.top_down = GroupedFeedForward(dim=dim, groups=levels - 1)
        self.attention = ConsensusAttention(
            side, attend_self=consensus_self, local_consensus_radius=local_consensus_radius
        )

    def forward(
        self,
        img: Float[Tensor, "b 3 height width"],
        iters: int | None = None,
        levels: Float[Tensor, "b n l d"] | None = None,
        return_all: bool = False,
    ) -> Float[Tensor, "b n l d"] | Float[Tensor, "t b n l d"]:
        """Runs `iters` steps (default: twice the number of levels); see `jaxmodels.Glom`."""
        self._check(img, levels)
        iters = 2 * self.levels if iters is None else require_integer("iters", iters, minimum=0)

        p = self.patch_size
        tokens = rearrange(img, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p, p2=p)
        tokens = self.image_to_tokens(tokens)[:, :, None]  # b n 1 d
        b, n = tokens.shape[:2]
        positions = self.pos_emb(torch.arange(n, device=img.device))[:, None]  # n 1 d

        state = repeat(self.init_levels, "l d -> b n l d", b=b, n=n) if levels is None else levels
        states = [state]
        for _ in range(iters):
            bottom_up = self.bottom_up(torch.cat([tokens, state[:, :, :-1]], dim=2))
            state = self.update(state, bottom_up, positions)
            states.append(state)
        return torch.stack(states) if return_all else state

    def update(
        self,
        state: Float[Tensor, "b n l d"],
        bottom_up: Float[Tensor, "b n l d"],
        positions: Float[Tensor, "n 1 d"],
    ) -> Float[Tensor, "b n l d"]:
        """The next state: the mean of the old state, bottom-up, top-down and consensus."""
        # The top level has no top-down contribution.
        contributions = torch.full((self.levels, 1), 4, dtype=state.dtype, device=state.device)
        contributions[-1] = 3
        top_down = self.top_down(state[:, :, 1:] + positions)
        top_down = F.pad(top_down, (0, 0, 0, 1))
        consensus = self.attention(state)
        return (state + bottom_up + top_down + consensus) / contributions

    def _check(self, img: Tensor, levels: Tensor | None) -> None:
        require_images("img", img, channels=3)
        b, _, height, width = img.shape
        require_divisible("image height", height, "patch_size", self.patch_size)
        require_divisible("image width", width, "patch_size", self.patch_size)
        side = self.image_size // self.patch_size
        h, w = height // self.patch_size, width // self.patch_size
        if h * w > side**2:
            raise ValueError(
                f"img must have at most (image_size / patch_size)² = {side**2} patches, "
                f"the rows of the position table; got {h}×{w} = {h * w}"
            )
        if self.attention.local_consensus_radius > 0 and (h, w) != (side, side):
            raise ValueError(
                f"img must be image_size={self.image_size} square when local_consensus_radius > 0, "
                f"because the mask has that geometry; got {height}×{width}"
            )
        if levels is not None:
            require_shape("levels", levels, (b, h * w, self.levels, self.dim))
