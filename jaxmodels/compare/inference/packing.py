"""Weights that one side has in one piece and the other in several: fused queries, keys and values, stacked layers."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, permutations
from typing import Any, NamedTuple

from jaxmodels.compare.inference.candidates import Axes, candidate_axes
from jaxmodels.convert.table import Parameter


MOST_OPTIONS = 300  # of one packed weight
MOST_PERMUTED = 4  # parts whose orders are all tried; more than that are layers, in their own order
MOST_MIDDLES = 4  # layouts of one part

Shapes = Mapping[str, tuple[int, ...]]


class Packed(NamedTuple):
    """One weight that holds several of the other side.

    Attributes:
      whole: the weight, and `here` whether JAX has it.
      parts: the others, in their own order.
    """

    whole: str
    here: bool
    parts: tuple[str, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of all modules that take part."""
        return tuple(name.rpartition(".")[0] for name in (self.whole, *self.parts))


class Option(NamedTuple):
    """One way to pack.

    Attributes:
      order: the modules of the parts, in the order in which they are packed.
      style: how the parts lie; a bias is packed in the style of its kernel.
      entries: what the table says.
    """

    order: tuple[str, ...]
    style: str
    entries: tuple[Parameter, ...]


def packed_layers(ours: Shapes, theirs: Shapes) -> list[tuple[Packed, ...]]:
    """Which weights may hold others, those of one layer together.

    The others have one shape, related names, and the same number of elements.
    """
    found = [Packed(key, False, parts) for key, parts in _bundles(theirs, ours)]
    taken = {part for one in found for part in one.parts}
    rest = {path: shape for path, shape in ours.items() if path not in taken}
    others = {key: shape for key, shape in theirs.items() if key not in {one.whole for one in found}}
    found += [Packed(path, True, parts) for path, parts in _bundles(rest, others)]
    layers: defaultdict[object, list[Packed]] = defaultdict(list)
    for one in found:
        layers[one.layers[0], frozenset(one.layers[1:])].append(one)
    return [tuple(together) for together in layers.values()]


def _bundles(wholes: Shapes, parts: Shapes) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(weight, those that it may hold), every part in one bundle only."""
    related: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
    for path, shape in parts.items():
        layer, _, own = path.rpartition(".")
        stacked = re.sub(r"\d+", "#", path) if re.search(r"\d", path) else None
        if stacked:  # one of a row of layers
            related[stacked, shape].append(path)
        related[layer.rpartition(".")[0], own, shape].append(path)
    taken: set[str] = set()
    for whole, shape in wholes.items():
        for (*_, part_shape), names in related.items():
            left = [name for name in names if name not in taken]
            count = len(left)
            if count > 1 and math.prod(shape) == count * math.prod(part_shape):
                taken |= set(left)
                yield whole, tuple(left)
                break


def options(packed: tuple[Packed, ...], ours: Shapes, theirs: Shapes) -> list[tuple[Parameter, ...]]:
    """The entries of all ways to pack the weights of a layer, likely ones first."""
    ways = [
        list(islice((_of_ours if one.here else _of_theirs)(one, ours, theirs), MOST_OPTIONS))
        for one in packed
    ]
    lead, *others = sorted(ways, key=len, reverse=True)
    found = []
    for option in lead:
        entries = option.entries
        for other in others:
            alike = [one for one in other if one.order == option.order]
            same = next((one for one in alike if one.style == option.style), alike[0] if alike else None)
            if same is None:
                break
            entries += same.entries
        else:
            found.append(entries)
    return found


def _layers(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(part.rpartition(".")[0] for part in parts)


def _orders(parts: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return permutations(parts) if len(parts) <= MOST_PERMUTED else [tuple(parts)]


def _of_theirs(packed: Packed, ours: Shapes, theirs: Shapes) -> Iterator[Option]:
    """PyTorch's weight holds several variables along its first axis, one after the other or head by head."""
    count = len(packed.parts)
    first, *rest = theirs[packed.whole]
    if first % count:
        return
    shape = ours[packed.parts[0]]
    layouts = candidate_axes((first // count, *rest), shape)[:MOST_MIDDLES]
    for order in _orders(packed.parts):
        for axes in layouts:
            for style, pattern, sizes in _with_parts(axes, first // count):
                entries = (
                    Parameter(packed.whole, path, pattern, part=(i, count), sizes=sizes)
                    for i, path in enumerate(order)
                )
                yield Option(_layers(order), style, tuple(entries))


Pattern = tuple[str, str, tuple[tuple[str, int], ...]]  # style, axes, sizes


def _with_parts(axes: Axes, size: int) -> Iterator[Pattern]:
    """Patterns with an axis of parts in the first axis of PyTorch: before the heads, behind them, or last."""
    if axes.axes == "... -> ...":
        axes = Axes("a -> a")
    left, right = axes.axes.split(" -> ")
    group, rest = _first_axis(left)
    yield "outer", f"(part {' '.join(group)}){rest} -> {right}", axes.sizes
    if len(group) > 1:
        head, *features = group
        yield "heads", f"({head} part {' '.join(features)}){rest} -> {right}", axes.sizes
        yield "inner", f"({head} {' '.join(features)} part){rest} -> {right}", axes.sizes
    elif group[0] != "1" and "(" not in right:
        within = " ".join("(y z)" if token == group[0] else token for token in right.split())
        for heads in range(2, size + 1):
            if size % heads == 0:
                yield f"{heads} heads", f"(y part z){rest} -> {within}", (*axes.sizes, ("y", heads))


def _first_axis(left: str) -> tuple[list[str], str]:
    """The names in the first axis of a pattern, and the rest of the pattern."""
    if left.startswith("("):
        inside, _, rest = left[1:].partition(")")
        return inside.split(), rest
    head, space, rest = left.partition(" ")
    return [head], space + rest


def _of_ours(packed: Packed, ours: Shapes, theirs: Shapes) -> Iterator[Option]:
    """A variable holds several of PyTorch's weights, along an axis of its own or within one."""
    count = len(packed.parts)
    shape = ours[packed.whole]
    other = theirs[packed.parts[0]]
    for order in _orders(packed.parts):
        for axis, size in enumerate(shape):
            if size % count:
                continue
            own = size == count
            middle = (
                (*shape[:axis], *shape[axis + 1 :])
                if own
                else (*shape[:axis], size // count, *shape[axis + 1 :])
            )
            for axes in candidate_axes(other, middle)[:MOST_MIDDLES]:
                for style, pattern, sizes in _with_blocks(axes, axis, size // count, own=own):
                    entries = (
                        Parameter(key, packed.whole, pattern, block=(i, count), sizes=sizes)
                        for i, key in enumerate(order)
                    )
                    yield Option(_layers(order), style, tuple(entries))


def _with_blocks(axes: Axes, axis: int, size: int, *, own: bool) -> Iterator[Pattern]:
    """Patterns with an axis of blocks: in the place of `axis`, or within it."""
    left, right = ("a", "a") if axes.axes == "... -> ..." else axes.axes.split(" -> ")
    tokens = right.split()
    if "(" in right or (not own and tokens[axis] == "1"):
        return
    if own:
        yield "own", f"{left} -> {' '.join([*tokens[:axis], 'block', *tokens[axis:]])}", axes.sizes
        return
    name = tokens[axis]
    yield "outer", f"{left} -> {_replaced(tokens, axis, f'(block {name})')}", axes.sizes
    split = " ".join("(y z)" if token == name else token for token in left.split())
    if "(" not in left:
        for heads in range(2, size + 1):
            if size % heads == 0:
                pattern = f"{split} -> {_replaced(tokens, axis, '(y block z)')}"
                yield f"{heads} heads", pattern, (*axes.sizes, ("y", heads))


def _replaced(tokens: Sequence[str], axis: int, by: str) -> str:
    return " ".join([*tokens[:axis], by, *tokens[axis + 1 :]])
