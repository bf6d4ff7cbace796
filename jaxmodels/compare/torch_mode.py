"""A PyTorch model in training mode: dropout switched off, and the buffers that a run changes. Needs no JAX."""

from collections.abc import Mapping

import torch


def without_dropout(module: torch.nn.Module) -> bool:
    """Sets the rate of a module of PyTorch to 0, and says whether it had another."""
    if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p:
        module.p = 0.0
        return True
    if isinstance(module, torch.nn.MultiheadAttention | torch.nn.RNNBase) and module.dropout:
        module.dropout = 0.0
        return True
    return False


def statistics_of(model: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    """Copies of the buffers of a model, which a forward pass in training mode changes."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def restore_statistics(model: torch.nn.Module, statistics: Mapping[str, torch.Tensor]) -> None:
    """Puts the buffers back; in JAX a run leaves the model as it was."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in statistics and statistics[name].shape == buffer.shape:  # a cache may have grown
                buffer.copy_(statistics[name])
