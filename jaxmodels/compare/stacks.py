"""Layers that a scan runs from stacked weights: an entry of the table and a place in the report for each.

The module "layers.up" of such a stack is, in its third layer, "layers.up[2]". Needs no PyTorch.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from jaxmodels.compare.layers import Event, Key
from jaxmodels.convert.table import Parameter, Twin


LAYER = re.compile(r"\[(\d+)\]$")


def layer_path(path: str, index: int) -> str:
    """The path of one layer of a stacked module."""
    return f"{path}[{index}]"


def stacked_path(path: str) -> str:
    """The path of the stacked module that a layer belongs to; any other path as it is."""
    return LAYER.sub("", path)


def in_block(entry: Parameter, index: int, count: int, rank: int) -> Parameter:
    """The entry of one layer, as a block of a variable whose first axis counts `count` layers.

    Args:
      entry: for the layer alone.
      rank: of the variable, without the axis of layers.
    """
    axes = " ".join(f"a{i}" for i in range(rank))
    left, right = (axes, axes) if entry.axes == "... -> ..." else entry.axes.split(" -> ")
    return entry._replace(axes=f"{left} -> block {right}".strip(), block=(index, count))


def per_layer(events: Mapping[Key, Event], twins: Iterable[Twin], *, stacked: bool) -> dict[Key, Event]:
    """The same events, those of a stacked module as events of its layers.

    Args:
      events: of the JAX side.
      twins: which say what is stacked.
      stacked: whether a scan is recorded as one call with an axis of layers, as nnx.scan is; otherwise as one call
        per layer.
    """
    layers = Counter(stacked_path(twin.ours) for twin in twins if LAYER.search(twin.ours))
    calls = Counter(event.path for event in events.values() if event.kind == "output")
    found: dict[Key, Event] = {}
    for event in events.values():
        count = layers[event.path]
        if not count:
            found[event.key] = event
        elif not stacked and calls[event.path] % count == 0:  # not the call of the scan itself
            call, index = divmod(event.call, count)
            event = event._replace(path=layer_path(event.path, index), call=call)
            found[event.key] = event
        elif stacked and all(array.shape[:1] == (count,) for array in event.arrays):
            for index in range(count):
                arrays = tuple(array[index] for array in event.arrays)
                one = event._replace(path=layer_path(event.path, index), arrays=arrays)
                found[one.key] = one
    return found
