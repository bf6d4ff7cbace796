"""Which name of one capture is which of the other's, read off the weights: both sides must hold the same ones.

A weight pairs with the one that has the same values; the order of its axes is the one in which the values agree. Where
several fit – biases that are all zeros – names decide, and what they leave open is not compared.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from jaxmodels.compare.captures.files import Capture
from jaxmodels.compare.projection import Projection
from jaxmodels.convert.table import Entry, Parameter, Twin


# PyTorch's names of what Flax's layers call otherwise.
LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
PACKED = (3, 2, 4)  # how many equal blocks one weight of PyTorch may hold
SIGNIFICANT_DIGITS = 9  # of a projection's moments, which two machines sum up in other orders


class Correspondence(NamedTuple):
    """The table of two captures.

    Attributes:
      table: entries as the conversion has them.
      unpaired: weights of JAX without a counterpart, and why.
    """

    table: list[Entry]
    unpaired: dict[str, str]


def same_names(capture: Capture) -> Correspondence:
    """The table of two captures of one framework."""
    weights = next(iter(capture.runs.values())).weights
    table: list[Entry] = [Parameter(name, name) for name in weights]
    return Correspondence(table + [Twin(path, path) for path in capture.modules if path], {})


def by_values(
    theirs: Capture, ours: Capture, names: Mapping[str, str], weights: tuple[dict[str, Any], dict[str, Any]]
) -> Correspondence:
    """The table of a PyTorch and a JAX capture.

    Args:
      theirs, ours: the captures.
      names: dotted paths in JAX -> in PyTorch, of modules whose names differ; what lies below follows.
      weights: (PyTorch's, JAX's) in one type.

    Raises:
      ValueError: `names` has a path that neither capture has.
    """
    unknown = [f"not in the JAX capture: {path}" for path in names if path not in ours.modules]
    unknown += [
        f"not in the PyTorch capture: {path}" for path in names.values() if path not in theirs.modules
    ]
    if unknown:
        raise ValueError("names must pair existing modules\n  " + "\n  ".join(unknown))
    return _Pairing(theirs, ours, names, *weights).result()


class _Pairing:
    """Pairs weights in two passes: those that only one fits, and then, with what these say of names, the others."""

    def __init__(
        self,
        theirs: Capture,
        ours: Capture,
        names: Mapping[str, str],
        their_weights: dict[str, Any],
        our_weights: dict[str, Any],
    ) -> None:
        self.theirs, self.ours, self.names = theirs, ours, dict(names)
        self.their_weights, self.our_weights = their_weights, our_weights
        self.whole: defaultdict[str, list[str]] = defaultdict(list)
        self.blocks: defaultdict[str, list[tuple[str, tuple[int, int]]]] = defaultdict(list)
        for name, array in their_weights.items():
            self.whole[_fingerprint(array)].append(name)
            for part, block in _blocks(array):
                self.blocks[_fingerprint(block)].append((name, part))

    def result(self) -> Correspondence:
        entries: dict[str, Parameter] = {}
        unpaired: dict[str, str] = {}
        later = []
        for path, array in self.our_weights.items():
            fitting = self.whole.get(_fingerprint(array), [])
            if len(fitting) == 1:
                self._add(entries, path, fitting[0])
            else:
                later.append((path, fitting))
        self._learn_names(entries)
        for path, fitting in later:
            named = self._name_of(path)
            packed = [] if fitting else self.blocks.get(_fingerprint(self.our_weights[path]), [])
            if named in fitting:
                self._add(entries, path, named)
            elif len(packed) == 1:
                self._add(entries, path, *packed[0])
            elif fitting:
                unpaired[path] = (
                    f"several weights of PyTorch hold its values: {', '.join(sorted(fitting)[:4])}"
                )
            elif named in self.their_weights:
                entries[path] = Parameter(
                    named, path, _usual_axes(self.their_weights[named], self.our_weights[path], path)
                )
            else:
                unpaired[path] = "no weight of PyTorch has its values or its name"
        self._learn_names(entries)
        return Correspondence([*self._in_order(entries), *self._twins()], unpaired)

    def _add(
        self, entries: dict[str, Parameter], path: str, name: str, part: tuple[int, int] | None = None
    ) -> None:
        source = self.their_weights[name]
        block = dict(_blocks(source))[part] if part else source
        layout = _layout(block, self.our_weights[path], path)
        if layout is not None:
            entries[path] = Parameter(name, path, layout[0], flip=layout[1], part=part)

    def _in_order(self, entries: Mapping[str, Parameter]) -> list[Parameter]:
        """In PyTorch's order; blocks by their index, which need not be complete."""
        position = {name: i for i, name in enumerate(self.their_weights)}
        return sorted(entries.values(), key=lambda entry: (position[entry.theirs], entry.part or (0, 1)))

    def _learn_names(self, entries: Mapping[str, Parameter]) -> None:
        """Modules whose weights are paired are paired themselves, where they say so with one voice."""
        said: defaultdict[str, set[str]] = defaultdict(set)
        for path, entry in entries.items():
            if entry.part is None:
                said[_parent(path)].add(_parent(entry.theirs))
        for path, parents in said.items():
            if len(parents) == 1 and path in self.ours.modules:
                self.names.setdefault(path, next(iter(parents)))

    def _name_of(self, path: str) -> str:
        """PyTorch's name of a weight, as the names of modules have it."""
        leaf = path.rpartition(".")[2]
        return f"{self._module_of(_parent(path))}.{LEAF_NAMES.get(leaf, leaf)}".removeprefix(".")

    def _module_of(self, path: str) -> str:
        prefix = path
        while prefix and prefix not in self.names:
            prefix = _parent(prefix)
        return (self.names[prefix] + path[len(prefix) :]).removeprefix(".") if prefix in self.names else path

    def _twins(self) -> Iterator[Twin]:
        taken: set[str] = set()
        for path in sorted(self.ours.modules):
            twin = self._module_of(path)
            if path and twin and twin in self.theirs.modules and twin not in taken:
                taken.add(twin)
                yield Twin(twin, path, None)


def _fingerprint(array: Any) -> str:
    """Equal for arrays with the same values in any order."""
    if isinstance(array, Projection):
        return " ".join(f"{value:.{SIGNIFICANT_DIGITS}g}" for value in array.moments) + f" {array.size}"
    values = np.sort(np.asarray(array, np.float64), axis=None) + 0.0  # without a negative zero
    return f"{array.size} {hashlib.sha256(values.tobytes()).hexdigest()}"


def _blocks(array: Any) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """The equal parts along the first axis, by (index, count)."""
    if isinstance(array, Projection) or array.ndim == 0:
        return
    for count in PACKED:
        if array.shape[0] % count == 0:
            for index, block in enumerate(np.split(array, count)):
                yield (index, count), block


def _layout(theirs: Any, ours: Any, path: str) -> tuple[str, int] | None:
    """(axes, flip) with which PyTorch's array becomes ours; the usual layout of a kernel comes first."""
    spatial = max(theirs.ndim - 2, 0)
    for flip in dict.fromkeys((0, spatial)):
        for order in _orders(theirs.ndim, path):
            groups = _groups([theirs.shape[axis] for axis in order], ours.shape)
            if groups is not None and _agrees(theirs.transpose(order), ours, flip):
                return _pattern(order, groups), flip
    return None


def _orders(rank: int, path: str) -> list[tuple[int, ...]]:
    orders = list(permutations(range(rank)))
    if path.rpartition(".")[2] == "kernel" and rank >= 2:
        usual = (*range(2, rank), 1, 0)
        orders.remove(usual)
        orders.insert(0, usual)
    return orders


def _groups(sizes: Sequence[int], shape: Sequence[int]) -> list[list[int]] | None:
    """Which consecutive axes of `shape` are merged into each of `sizes`; None where they are not."""
    groups, axis = [], 0
    for size in sizes:
        group: list[int] = []
        while math.prod(shape[i] for i in group) != size or (
            axis < len(shape) and shape[axis] == 1 and not group
        ):
            if axis == len(shape):
                return None
            group.append(axis)
            axis += 1
        groups.append(group)
    return groups if axis == len(shape) else None


def _agrees(theirs: Any, ours: Any, flip: int) -> bool:
    if isinstance(theirs, Projection) or isinstance(ours, Projection):
        if type(theirs) is not type(ours) or theirs.shape != ours.shape:
            return False
        theirs, ours = theirs.sums, ours.sums
        theirs = np.flip(theirs, tuple(range(flip)))
        return bool(np.allclose(theirs, ours, rtol=0, atol=1e-9 * np.abs(ours).max(initial=0)))
    theirs = np.asarray(theirs).reshape(ours.shape)
    return bool(np.array_equal(np.flip(theirs, tuple(range(flip))), ours))


def _pattern(order: Sequence[int], groups: Sequence[Sequence[int]]) -> str:
    """The einops pattern."""
    left = [""] * len(order)
    for axis, group in zip(order, groups, strict=True):
        names = " ".join(f"a{i}" for i in group)
        left[axis] = names if len(group) == 1 else f"({names})" if group else "1"
    right = " ".join(f"a{i}" for i in range(sum(map(len, groups))))
    return f"{' '.join(left)} -> {right}"


def _usual_axes(theirs: Any, ours: Any, path: str) -> str:
    """The layout of a weight whose values differ: the first that has the shape."""
    for order in _orders(theirs.ndim, path):
        groups = _groups([theirs.shape[axis] for axis in order], ours.shape)
        if groups is not None:
            return _pattern(order, groups)
    return "... -> ..."


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
