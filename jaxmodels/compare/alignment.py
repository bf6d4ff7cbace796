"""Brings an array of PyTorch's into the axes of its counterpart, where the table does not say how.

Flax keeps channels last and PyTorch first, attention may hold heads before or after positions, one side may
merge or repeat axes of the other. The order is read off the shapes. The usual orders come first: a rarer one
is taken only where none of them fits.
"""

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np

from jaxmodels.compare.projection import Projection


Array = np.ndarray | Projection
MOST_AXES = 6  # of which all orders are tried


def aligned(theirs: Array, ours: Array, *, channels_first: bool) -> list[tuple[Array, Array]]:
    """The ways to read both arrays as one shape, all equally plausible; empty where there is none.

    Args:
      channels_first: axis 1 of `theirs` holds the channels, as for convolutions.
    """
    a, b = _without_leading_ones(theirs), _without_leading_ones(ours)
    orders = [
        _usual_orders(a, b, channels_first),
        _usual_orders(theirs, ours, channels_first),
        _all_orders(a, b),
    ]
    # A projection's places are not those of the tensor.
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        orders.append(_repeated(a, b))
    if isinstance(theirs, np.ndarray) and isinstance(ours, np.ndarray):
        orders.append(_merged(theirs, ours, channels_first))
    for candidates in orders:
        found = [(x, y) for x, y in candidates if x.shape == y.shape]
        if found:
            return found
    return []


def _usual_orders(a: Array, b: Array, channels_first: bool) -> Iterator[tuple[Array, Array]]:
    if a.ndim != b.ndim:
        return
    last = _moved(a, 1, -1) if a.ndim > 2 else a
    if channels_first:
        if last.shape == b.shape:
            yield last, b
        elif a.ndim > 2:
            yield _moved(a, 0, -1), b  # a single example, or a batch of one
        return
    yield a, b
    if a.ndim > 2:
        yield last, b


def _all_orders(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    if a.ndim != b.ndim or a.ndim > MOST_AXES or sorted(a.shape) != sorted(b.shape):
        return
    for order in permutations(range(a.ndim)):
        if all(a.shape[axis] == size for axis, size in zip(order, b.shape, strict=True)):
            yield a.transpose(order), b


def _repeated(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One side holds once what the other repeats along its first axes, such as positions for each example."""
    if a.ndim < b.ndim and b.shape[b.ndim - a.ndim :] == a.shape:
        yield np.broadcast_to(a, b.shape), b
    elif b.ndim < a.ndim and a.shape[a.ndim - b.ndim :] == b.shape:
        yield a, np.broadcast_to(b, a.shape)


def _merged(a: np.ndarray, b: np.ndarray, channels_first: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One side has merged axes before the last one, such as examples and positions."""
    if channels_first and a.ndim > 2:
        a = np.moveaxis(a, 1, -1)
    if a.ndim and b.ndim and a.ndim != b.ndim and a.size == b.size and a.shape[-1] == b.shape[-1]:
        yield a.reshape(b.shape), b


def _without_leading_ones(array: Array) -> Array:
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return array


def _moved(array: Any, source: int, destination: int) -> Any:
    """np.moveaxis, which asks any object that can transpose itself."""
    return np.moveaxis(array, source, destination)
