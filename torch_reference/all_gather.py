"""The batches of all ranks of a process group, with their gradient. JAX needs no such code: its arrays are global.

Shapes: b batch of one rank, total batch of all ranks, z latent width.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed


def gather_batches(
    text: Float[Tensor, "b z"], image: Float[Tensor, "b z"]
) -> tuple[Float[Tensor, "total z"], Float[Tensor, "total z"]]:
    """In a process group the batches of all ranks, otherwise the arguments."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        text, image = AllGather.apply(torch.stack([text, image], dim=1)).unbind(dim=1)
    return text, image


class AllGather(torch.autograd.Function):
    """The batches of all ranks in rank order, which may differ in size.

    Every rank computes the same loss from the result, and gradients are averaged over ranks afterwards. Hence the
    gradient is the rank's own slice times the number of ranks. (The package leaves out this factor: its
    gradients below the latents are too small by the number of ranks; that of the temperature is right.)
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "b ..."]) -> Float[Tensor, "total ..."]:
        size = torch.tensor(len(x), device=x.device)
        sizes = [torch.empty_like(size) for _ in range(distributed.get_world_size())]
        distributed.all_gather(sizes, size)
        ctx.sizes = [int(size) for size in sizes]
        padded = x.new_zeros(max(ctx.sizes), *x.shape[1:])  # all_gather wants equal shapes
        padded[: len(x)] = x
        batches = [torch.empty_like(padded) for _ in ctx.sizes]
        distributed.all_gather(batches, padded)
        return torch.cat([batch[:size] for batch, size in zip(batches, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "total ..."]) -> Float[Tensor, "b ..."]:
        (gradient,) = gradients
        return len(ctx.sizes) * gradient.split(ctx.sizes)[distributed.get_rank()]
