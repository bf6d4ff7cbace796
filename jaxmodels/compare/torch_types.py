"""Whether a PyTorch model computes a part of a float64 run in float32 or in less. Needs no JAX."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


# Operations that round nothing: they place numbers that are there, or constants such as those of a mask.
EXACT_IN_TORCH = {
    "alias", "arange", "clone", "detach", "empty", "expand", "fill_", "full", "full_like", "masked_fill",
    "masked_fill_", "new_full", "new_zeros", "ones", "ones_like", "permute", "scalar_tensor", "select", "slice", "t",
    "transpose", "tril", "triu", "unsqueeze", "view", "where", "zeros", "zeros_like", "_unsafe_view",
}  # fmt: skip


def coarser_in_torch(call: Callable[[], Any]) -> tuple[str, str] | None:
    """The first operation of `call` with a coarser result than float64, and its type."""
    watch = _Watch()
    with torch.no_grad(), watch:
        call()
    return watch.found


class _Watch(TorchDispatchMode):
    """Sees every operation while it is entered."""

    found: tuple[str, str] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.found is None and name not in EXACT_IN_TORCH and not _from_integers(name, args):
            for value in result if isinstance(result, tuple | list) else (result,):
                if (
                    isinstance(value, torch.Tensor)
                    and value.is_floating_point()
                    and value.dtype != torch.float64
                ):
                    self.found = name, str(value.dtype).removeprefix("torch.")
        return result


def _from_integers(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation only converts integers or booleans."""
    source = args[0] if args else None
    return name == "_to_copy" and isinstance(source, torch.Tensor) and not source.is_floating_point()
