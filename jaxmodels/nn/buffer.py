"""Stored constants: what PyTorch calls a buffer."""

from flax import nnx


class Buffer(nnx.Variable):
    """A constant that belongs to a checkpoint but is not trained.

    It is not an `nnx.Param`, so optimisers and `nnx.grad` ignore it. Models read it through
    `jax.lax.stop_gradient`, so that `jax.grad` of a whole model gives it a gradient of zero.
    """
