"""What every module of a PyTorch model receives and returns, recorded by hooks. Needs no JAX."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jaxmodels.compare.layers import Event, leaves
from jaxmodels.convert.torch_io import to_numpy


def torch_events(
    model: torch.nn.Module, call: Callable[[], Any], keep: Callable[[np.ndarray], Any] = lambda array: array
) -> tuple[Any, list[Event]]:
    """Runs `call` and returns its result and all events of `model`'s submodules in order of time.

    Args:
      model: whose modules are watched.
      call: runs it.
      keep: what is kept of each array.
    """
    events: list[Event] = []
    begun: Counter[str] = Counter()
    open_calls: defaultdict[str, list[int]] = defaultdict(list)

    def before(path: str):
        def hook(_module, args, kwargs):
            open_calls[path].append(begun[path])
            events.append(Event(path, begun[path], "input", tuple(map(keep, arrays_of((args, kwargs))))))
            begun[path] += 1

        return hook

    def after(path: str):
        def hook(_module, _args, _kwargs, output):
            events.append(Event(path, open_calls[path].pop(), "output", tuple(map(keep, arrays_of(output)))))

        return hook

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(module.register_forward_hook(after(path), with_kwargs=True))
    try:
        result = call()
    finally:
        for handle in handles:
            handle.remove()
    return result, events


def arrays_of(tree: Any) -> tuple[np.ndarray, ...]:
    """All tensors in nested tuples, lists and dicts, in order, as NumPy; without sparse and nested ones."""
    tensors = leaves(tree, lambda leaf: isinstance(leaf, torch.Tensor))
    return tuple(to_numpy(one) for one in tensors if one.layout == torch.strided and not one.is_nested)
