"""Stored constants: what PyTorch calls a buffer."""

from flax import nnx


class Buffer(nnx.Variable):
    """A constant that belongs to a checkpoint but is not trained.

    Not an `nnx.Param`: optimisers and `nnx.grad` pass it by. A model reads it under `jax.lax.stop_gradient`,
    so that `jax.grad` over the whole model gives it zero.
    """
