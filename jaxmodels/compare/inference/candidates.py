"""Every way in which a parameter of one shape may be a variable of another shape."""

import math
from collections.abc import Iterator, Sequence
from itertools import permutations
from string import ascii_lowercase
from typing import NamedTuple


MOST_AXES = 6  # of which all orders are tried


class Axes(NamedTuple):
    """What a `Parameter` says about axes."""

    axes: str = "... -> ..."
    flip: int = 0
    sizes: tuple[tuple[str, int], ...] = ()


# The layouts of the usual layers, PyTorch's axes -> Flax's: they are tried before all others.
USUAL = (
    "o i -> i o",
    "o i w -> w i o", "o i h w -> h w i o", "o i d h w -> d h w i o",
    "i o w -> w i o", "i o h w -> h w i o", "i o d h w -> d h w i o",
    "i o w -> w o i", "i o h w -> h w o i", "i o d h w -> d h w o i",
)  # fmt: skip


def candidate_axes(theirs: Sequence[int], ours: Sequence[int]) -> list[Axes]:
    """All layouts that turn a PyTorch parameter of shape `theirs` into a variable of shape `ours`, likely ones first.

    These are all orders of the axes, merged axes on either side (heads and their features), axes of one element on
    either side, and kernels that run backwards along their spatial axes.
    """
    theirs, ours = tuple(theirs), tuple(ours)
    if math.prod(theirs) != math.prod(ours) or max(len(theirs), len(ours)) > MOST_AXES:
        return []
    if theirs == ours and len(theirs) < 2:
        return [Axes()]
    split_here = [Axes(f"{left} -> {right}") for left, right in _splits(theirs, ours)]
    split_there = [
        Axes(f"{left} -> {right}", sizes=sizes)
        for right, left, sizes in _with_sizes(_splits(ours, theirs), theirs)
        if "(" in right
    ]
    found = sorted(split_here, key=_rarity) + split_there
    found += _grouped_transposed(theirs, ours)
    spatial = len(ours) - 2
    if spatial > 0 and len(theirs) == len(ours):
        # Spatial axes come first in Flax and last in Equinox.
        flips = (0, spatial, -spatial) if max(ours) > 1 else (0,)
        found = [one._replace(flip=flip) for one in found for flip in flips]
    return found


def _grouped_transposed(theirs: Sequence[int], ours: Sequence[int]) -> list[Axes]:
    """A transposed convolution in groups: PyTorch has the groups among its inputs, JAX among its outputs."""
    if len(theirs) != len(ours) or len(ours) < 3 or tuple(theirs[2:]) != tuple(ours[:-2]):
        return []
    groups = theirs[0] // ours[-2]
    if groups < 2 or theirs[0] != groups * ours[-2] or ours[-1] != groups * theirs[1]:
        return []
    spatial = " ".join(ascii_lowercase[-len(ours) + 2 :])
    return [Axes(f"(g i) o {spatial} -> {spatial} i (g o)", sizes=(("g", groups),))]


def _rarity(one: Axes) -> tuple[bool, bool]:
    """Sorts the usual layouts first, and layouts that keep the order of merged axes before others."""
    left, right = one.axes.split(" -> ")
    canonical = {_canonical(*axes.split(" -> ")) for axes in USUAL}
    in_order = (
        left.replace("(", "").replace(")", "").replace("1", "").split() == right.replace("1", "").split()
    )
    return _canonical(left, right) not in canonical, not in_order


def _canonical(left: str, right: str) -> str:
    """A pattern with its axes renamed in the order of the left side."""
    names = dict.fromkeys(name for name in left.replace("(", " ").replace(")", " ").split() if name != "1")
    letters = dict(zip(names, ascii_lowercase, strict=False))
    return "".join(letters.get(c, c) for c in f"{left} -> {right}")


def _splits(merged: Sequence[int], split: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Patterns in which each axis of `merged` is made of axes of `split`, as (pattern of merged, of split)."""
    names = [ascii_lowercase[i] for i in range(len(split))]
    kept = [i for i, size in enumerate(split) if size != 1]
    targets = [size for size in merged if size != 1]
    right = " ".join(name if i in kept else "1" for i, name in enumerate(names))
    for order in permutations(kept):
        for groups in _grouped([split[i] for i in order], targets):
            position = 0
            tokens = iter(groups)
            left = []
            for size in merged:
                if size == 1:
                    left.append("1")
                    continue
                count = next(tokens)
                group = [names[i] for i in order[position : position + count]]
                position += count
                left.append(group[0] if count == 1 else f"({' '.join(group)})")
            yield " ".join(left), right


def _grouped(sizes: Sequence[int], targets: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """How many consecutive sizes make each target, in all ways."""
    if not targets:
        if not sizes:
            yield ()
        return
    product = 1
    for count, size in enumerate(sizes, 1):
        product *= size
        if product == targets[0]:
            for rest in _grouped(sizes[count:], targets[1:]):
                yield (count, *rest)


def _with_sizes(
    patterns: Iterator[tuple[str, str]], split: Sequence[int]
) -> Iterator[tuple[str, str, tuple[tuple[str, int], ...]]]:
    for merged, plain in patterns:
        sizes = tuple((name, size) for name, size in zip(plain.split(), split, strict=True) if name != "1")
        yield merged, plain, sizes
