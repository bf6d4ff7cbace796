"""The tensors of JAX under PyTorch's names and in PyTorch's layout, as the table says."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange

from jaxmodels.compare.noise import projected
from jaxmodels.compare.projection import Projection
from jaxmodels.convert.table import Entry, Parameter


Tensors = Mapping[str, Any]


def in_their_layout(
    table: Iterable[Entry], ours: Tensors, theirs: Sequence[Tensors]
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """All tensors that both sides have, as arrays of one shape on both sides.

    Where one is a projection and the table merges or splits its axes, its moments take its place.

    Args:
      table: the parameters.
      ours: JAX's tensors by JAX's names.
      theirs: PyTorch's, of several runs.

    Returns:
      JAX's by PyTorch's names, and each of `theirs` with the same names. A tensor of another shape keeps it.
    """
    entries: defaultdict[str, list[Parameter]] = defaultdict(list)
    for entry in table:
        if isinstance(entry, Parameter):
            entries[entry.theirs].append(entry)
    mine: dict[str, np.ndarray] = {}
    others: list[dict[str, np.ndarray]] = [{} for _ in theirs]
    for name, parts in entries.items():
        if not (all(part.ours in ours for part in parts) and all(name in run for run in theirs)):
            continue
        if not _is_complete(parts):
            continue
        pairs = [_comparable(parts, [ours[part.ours] for part in parts], run[name]) for run in theirs]
        if any(pair is None for pair in pairs):
            continue
        for (a, b), other in zip(pairs, others, strict=True):  # ty: ignore[not-iterable]
            mine[name], other[name] = a, b
    return mine, others


def _is_complete(parts: Sequence[Parameter]) -> bool:
    """Whether all blocks of a packed weight are there. Of tied names of one weight the first is taken."""
    part = parts[0].part
    return part is None or [entry.part for entry in parts] == [(i, part[1]) for i in range(part[1])]


def _comparable(
    parts: Sequence[Parameter], ours: Sequence[Any], theirs: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    if not any(isinstance(array, Projection) for array in (*ours, theirs)):
        blocks = [_as_theirs(entry, array) for entry, array in zip(parts, ours, strict=True)]
        return (np.concatenate(blocks) if parts[0].part else blocks[0]), theirs
    if parts[0].part:
        return None
    entry, theirs, mine = parts[0], projected(theirs), projected(ours[0])
    rearranged = theirs.rearranged(entry.axes)
    if rearranged is None:
        return mine.moments, theirs.moments
    flipped = tuple(range(entry.flip))
    if any(mine.shape[axis] != mine.sums.shape[axis] for axis in flipped):
        return mine.moments, theirs.moments
    return np.flip(mine.sums, flipped), rearranged.sums


def _as_theirs(entry: Parameter, array: np.ndarray) -> np.ndarray:
    left, right = entry.axes.split(" -> ")
    array = np.flip(array, tuple(range(entry.flip)))
    if right == "...":
        return array
    names = right.split()
    if len(names) != array.ndim:
        return array
    return rearrange(array, f"{right} -> {left}", **dict(zip(names, array.shape, strict=True)))
