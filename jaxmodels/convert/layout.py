"""How one entry of a table moves numbers between PyTorch's layout and a variable's, both ways."""

import math
from collections.abc import Mapping

import numpy as np
from einops import rearrange

from jaxmodels.convert.table import Parameter


Groups = list[list[str]]


class Layout:
    """The layout of one `Parameter` for a variable of a given shape.

    On the way from PyTorch an entry is cut into parts, one of them is brought into our order of axes, and blocks
    become a variable. The export goes back the same way.

    Attributes:
      their_shape: the shape of PyTorch's whole entry.
      parts: how many parts PyTorch's entry has.
      blocks: how many blocks the variable has.

    Raises:
      ValueError: the pattern does not fit the variable's shape, or leaves the size of an axis open.
    """

    def __init__(self, entry: Parameter, shape: tuple[int, ...]) -> None:
        self.entry = entry
        self.left, self.right = entry.axes.split(" -> ")
        self.parts = entry.part[1] if entry.part else 1
        self.blocks = entry.block[1] if entry.block else 1
        self.part_is_named = "part" in self.left.replace("(", " ").replace(")", " ").split()
        given = dict(entry.sizes) | {"part": self.parts, "block": self.blocks}
        # Our axes one by one, without the axis of blocks: the order between the two sides.
        right = grouped(self.right)
        self.middle = " ".join(name for group in right for name in group if name != "block")
        if self.right == "...":
            self.sizes: dict[str, int] = {}
            self.their_shape = tuple(shape)
        else:
            self.sizes = _solved(entry, right, tuple(shape), given)
            self.their_shape = tuple(
                math.prod(self.sizes[name] if not name.isdigit() else int(name) for name in group)
                for group in grouped(self.left)
            )
        if self.parts > 1 and not self.part_is_named:
            self.their_shape = (self.parts * self.their_shape[0], *self.their_shape[1:])

    def block_from(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's whole entry -> our block, in the axes of `middle`."""
        index = self.entry.part[0] if self.entry.part else 0
        if self.part_is_named:
            block = rearrange(array, f"{self.left} -> part {self.middle}", **self._of(self.left))[index]
        else:
            block = np.split(array, self.parts)[index] if self.entry.part else array
            block = rearrange(block, f"{self.left} -> {self.middle}", **self._of(self.left))
        return self._flipped(block)

    def variable_from(self, blocks: Mapping[int, np.ndarray]) -> np.ndarray:
        """All blocks by their index -> the variable."""
        sizes = self._of(self.right)
        if self.entry.block is None:
            return rearrange(blocks[0], f"{self.middle} -> {self.right}", **sizes)
        stacked = np.stack([blocks[i] for i in range(self.blocks)])
        return rearrange(stacked, f"block {self.middle} -> {self.right}", **sizes)

    def part_from(self, variable: np.ndarray) -> np.ndarray:
        """The variable -> the part of PyTorch's entry that it holds, in the axes of `middle`."""
        sizes = self._of(self.right)
        if self.entry.block is None:
            return self._flipped(rearrange(variable, f"{self.right} -> {self.middle}", **sizes))
        blocks = rearrange(variable, f"{self.right} -> block {self.middle}", **sizes)
        return self._flipped(blocks[self.entry.block[0]])

    def entry_from(self, parts: Mapping[int, np.ndarray]) -> np.ndarray:
        """All parts by their index -> PyTorch's whole entry, contiguous."""
        found = [parts[i] for i in range(self.parts)]
        sizes = self._of(self.left)
        if self.part_is_named:
            array = rearrange(np.stack(found), f"part {self.middle} -> {self.left}", **sizes)
        else:
            array = (
                np.concatenate([rearrange(one, f"{self.middle} -> {self.left}", **sizes) for one in found])
                if self.entry.part
                else rearrange(found[0], f"{self.middle} -> {self.left}", **sizes)
            )
        # A copy: JAX's own buffer is read-only, and safetensors would write a strided view wrongly.
        return np.array(array, order="C")

    def _flipped(self, block: np.ndarray) -> np.ndarray:
        flip = self.entry.flip
        return np.flip(block, tuple(range(flip) if flip > 0 else range(flip, 0))) if flip else block

    def _of(self, side: str) -> dict[str, int]:
        """The sizes of the axes that one side of the pattern names."""
        names = {name for group in grouped(side) for name in group}
        return {name: size for name, size in self.sizes.items() if name in names}


def grouped(side: str) -> Groups:
    """One side of a pattern as the names of each array axis: "(h d) i" is [["h", "d"], ["i"]]."""
    groups: Groups = []
    inside = False
    for token in side.replace("(", " ( ").replace(")", " ) ").split():
        if token in "()":
            inside = token == "("
            if inside:
                groups.append([])
        elif inside:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


def _solved(
    entry: Parameter, right: Groups, shape: tuple[int, ...], given: Mapping[str, int]
) -> dict[str, int]:
    """The size of every named axis."""
    wrong = f"{entry.ours} has the shape {shape}, which {entry.axes!r} does not fit"
    if len(right) != len(shape):
        raise ValueError(wrong)
    sizes = {name: size for name, size in given.items() if name not in ("part", "block")}
    sizes |= {name: given[name] for name in ("part", "block") if name in entry.axes}
    for group, size in zip(right, shape, strict=True):
        open_names = [name for name in group if name not in sizes and not name.isdigit()]
        known = math.prod(
            int(name) if name.isdigit() else sizes[name] for name in group if name not in open_names
        )
        if len(open_names) > 1:
            raise ValueError(f"{entry.axes!r} leaves the sizes of {', '.join(open_names)} open: give `sizes`")
        if size % known or (not open_names and size != known):
            raise ValueError(wrong)
        sizes |= {name: size // known for name in open_names}
    return sizes
