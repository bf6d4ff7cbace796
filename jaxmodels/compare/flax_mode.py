"""A Flax model in training mode: dropout switched off. Needs no PyTorch."""

from flax import nnx


def without_flax_dropout(module: object) -> bool:
    """Sets the rate of a module of Flax to 0, and says whether it had another."""
    if isinstance(module, nnx.Dropout) and module.rate:
        module.rate = 0.0
        return True
    if isinstance(module, nnx.MultiHeadAttention) and module.dropout_rate:
        module.dropout_rate = 0.0
        return True
    return False
