"""Whether sizes of a configuration can be those of the weights, seen before anything of these sizes is built."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


ALWAYS_ALLOWED = 10**6  # for sizes that leave no trace in the weights, such as those of images


def require_plausible(arguments: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError if a model of these arguments must be larger than these weights are.

    This does not replace the comparison of every shape: it keeps a wrong number in a small file from taking all
    memory, or hours.

    Args:
      arguments: the constructor's arguments, as JSON has them.
      arrays: the weights.
    """
    if not isinstance(arguments, Mapping):
        return
    numbers = sum(array.size for array in arrays.values())
    deepest = max((key.count(".") for key in arrays), default=0)
    for name, value in arguments.items():
        if (nested := _nesting(value)) > deepest + 2:
            raise ValueError(f"{name} is nested {nested} deep, but the keys of the weights only {deepest}")
        for number in _integers(value):
            if abs(number) > max(numbers, ALWAYS_ALLOWED):
                raise ValueError(
                    f"{name}={_shown(value)} cannot be: the weights have only {numbers:,} numbers"
                )
    layers = sum(number for number in _integers(arguments.get("depth")) if number > 0)
    if layers > len(arrays):
        raise ValueError(
            f"depth={_shown(arguments['depth'])} cannot be: the weights have only {len(arrays):,} entries"
        )


def _integers(value: Any) -> Iterator[int]:
    """All integers in a value of JSON, without recursion."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, Mapping):
            pending += item.values()
        elif isinstance(item, int):
            yield item


def _nesting(value: Any) -> int:
    """How many lists or objects lie inside one another."""
    depth, layer = 0, [value]
    while layer := [item for item in layer if isinstance(item, list | tuple | Mapping)]:
        depth += 1
        layer = [inner for item in layer for inner in (item.values() if isinstance(item, Mapping) else item)]
    return depth


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
