"""Positions that are computed, not learned. The twin in JAX is `jaxmodels/nn/positions.py`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sincos_2d(
    height: int, width: int, dim: int, *, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "{height} {width} {dim}"]:
    """Entry (i, j) is [sin jω, cos jω, sin iω, cos iω]: column first, row second.

    Computed in `dtype`, at least float32. (The published packages use PyTorch's default type, whatever that of
    the parameters: their float64 models carry a float32 table.)
    """
    compute_dtype = torch.promote_types(dtype, torch.float32)
    quarter = dim // 4
    omega = 1.0 / (10000 ** (torch.arange(quarter, dtype=compute_dtype, device=device) / (quarter - 1)))  # m
    rows = torch.arange(height, dtype=compute_dtype, device=device)[:, None, None] * omega  # height 1 m
    columns = torch.arange(width, dtype=compute_dtype, device=device)[None, :, None] * omega  # 1 width m
    parts = columns.sin(), columns.cos(), rows.sin(), rows.cos()
    return torch.cat([part.expand(height, width, quarter) for part in parts], dim=-1).to(dtype)


class RotaryEmbedding(nn.Module):
    """Angles of rotary position embedding (https://arxiv.org/abs/2104.09864), at least in float32."""

    inv_freq: Tensor

    def __init__(self, dim_head: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(dim_head))

    def forward(self, n: int) -> Float[Tensor, "{n} k"]:
        inv_freq = self.inv_freq.to(torch.promote_types(self.inv_freq.dtype, torch.float32))
        # Positions in bfloat16, as the package counts them in a bfloat16 model, collide from 257 on.
        positions = torch.arange(n, device=inv_freq.device, dtype=inv_freq.dtype)
        angles = torch.outer(positions, inv_freq)
        return torch.cat([angles, angles], dim=-1)


def inverse_frequencies(dim_head: int) -> Float[Tensor, " half"]:
    """10000^(-2i / dim_head), in float32."""
    exponents = torch.arange(0, dim_head, 2, dtype=torch.float32) / dim_head
    return 1.0 / 10000**exponents


def rotate(x: Float[Tensor, "*b n k"], angles: Float[Tensor, "n k"]) -> Float[Tensor, "*b n k"]:
    """Rotates the pairs (x[i], x[i + k/2]) by the angles."""
    first, second = x.chunk(2, dim=-1)
    quarter_turn = torch.cat([-second, first], dim=-1)
    return x * angles.cos().to(x.dtype) + quarter_turn * angles.sin().to(x.dtype)
