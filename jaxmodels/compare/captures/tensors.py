"""The tensors of JAX under PyTorch's names and in PyTorch's layout, as the table says."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmodels.compare.noise import projected
from jaxmodels.compare.projection import Projection
from jaxmodels.convert.layout import Layout
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


def _is_complete(entries: Sequence[Parameter]) -> bool:
    """Whether all parts of a packed weight are there."""
    part = entries[0].part
    return part is None or sorted(entry.part[0] for entry in entries if entry.part) == list(range(part[1]))


def _comparable(
    entries: Sequence[Parameter], ours: Sequence[Any], theirs: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    """Both tensors as arrays in PyTorch's layout; None where projections of parts cannot be put together."""
    if not any(isinstance(array, Projection) for array in (*ours, theirs)):
        return _as_theirs(entries, ours), theirs
    entry, theirs, mine = entries[0], projected(theirs), projected(ours[0])
    if entry.part or entry.block:
        return None
    rearranged = theirs.rearranged(entry.axes)
    axes = tuple(range(entry.flip) if entry.flip >= 0 else range(entry.flip, 0))
    if rearranged is None or any(mine.shape[axis] != mine.sums.shape[axis] for axis in axes):
        return mine.moments, theirs.moments
    return np.flip(mine.sums, axes), rearranged.sums


def _as_theirs(entries: Sequence[Parameter], ours: Sequence[np.ndarray]) -> np.ndarray:
    """An array that does not fit the table stays as it is: another shape is a difference."""
    try:
        layouts = [Layout(entry, array.shape) for entry, array in zip(entries, ours, strict=True)]
    except ValueError:
        return ours[0]
    parts = {
        entry.part[0] if entry.part else 0: layout.part_from(array)
        for entry, layout, array in reversed(list(zip(entries, layouts, ours, strict=True)))
    }
    return layouts[0].entry_from(parts)
