"""Large tensors as a few sums over each axis, which transpose like the tensor itself.

Along every axis with more than `ROWS` places, a tensor is replaced by `ROWS` weighted sums over that axis. The weights
depend on the length of the axis alone. So the projection of a transposed tensor is the transposed projection, and two
frameworks with other layouts have the same one. A weight is between 1 and 2, with a random sign. An error at a single
place therefore enters every sum in full; rounding errors, which have random signs as well, grow with the root of the
number of places only. Projections are a form of the sketches of Halko, Martinsson and Tropp (2011), one per axis.

What a projection can miss: an error that is below about √n times the rounding of a single value, where the tensor has
n values. What merges or splits axes does not commute with it; such tensors are compared by their `moments`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


ROWS = 8
# Of SplitMix64 (Steele, Lea and Flood 2014). NumPy's generators may change from version to version.
GOLDEN, MIX_1, MIX_2 = (
    np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


@dataclass(frozen=True, eq=False)
class Projection:
    """What is kept of a large tensor.

    Attributes:
      sums: float64, with at most `ROWS` places along each axis.
      shape: that of the tensor.
      dtype: that of the tensor.
      moments: its sum over √n, its root mean square and its largest size; float64 (3,). They do not depend on layout.
      odd: how many values are "nan", "inf", "-inf", or fill masked places ("fill"). They are zeros in the sums.
    """

    sums: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    moments: np.ndarray
    odd: dict[str, int] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def transpose(self, order: Sequence[int]) -> "Projection":
        """The projection of the tensor with its axes in this order."""
        return replace(self, sums=self.sums.transpose(order), shape=tuple(self.shape[i] for i in order))

    def rearranged(self, axes: str) -> "Projection | None":
        """The same by an einops pattern; None where it does more than change the order of the axes."""
        left, right = (side.split() for side in axes.split(" -> "))
        if left == right == ["..."]:
            return self
        if sorted(left) != sorted(right) or len(left) != self.ndim or not all(map(str.isidentifier, left)):
            return None
        return self.transpose([left.index(name) for name in right])

    def __getitem__(self, index: int) -> "Projection":
        """The projection of one entry along the first axis, which must be short enough to be kept."""
        if self.shape[0] > ROWS:
            raise IndexError(f"the first axis, of {self.shape[0]} places, is summed over")
        return replace(self, sums=self.sums[index], shape=self.shape[1:])


def project(array: np.ndarray, odd: dict[str, np.ndarray]) -> Projection:
    """The projection of a tensor.

    Args:
      array: the tensor.
      odd: masks of values that are counted and left out of the sums, by what they are.
    """
    sums = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    for mask in odd.values():
        sums[mask] = 0
    mean_square = float(np.mean(np.abs(sums) ** 2)) if sums.size else 0.0
    total = float(sums.sum().real) / max(sums.size, 1) ** 0.5
    moments = np.array([total, mean_square**0.5, np.abs(sums).max(initial=0.0)])
    for axis, length in enumerate(array.shape):
        if length > ROWS:
            sums = np.moveaxis(np.tensordot(axis_weights(length), sums, axes=(1, axis)), 0, axis)
    counts = {name: int(mask.sum()) for name, mask in odd.items() if mask.any()}
    return Projection(np.ascontiguousarray(sums), array.shape, array.dtype, moments, counts)


def axis_weights(length: int) -> np.ndarray:
    """The weights of the sums over an axis, (ROWS, length): sizes from 1 to 2 with random signs."""
    counter = np.arange(ROWS * length, dtype=np.uint64) + np.uint64(length) * np.uint64(2**32)
    with np.errstate(over="ignore"):
        bits = (counter + np.uint64(1)) * GOLDEN
        bits = (bits ^ (bits >> np.uint64(30))) * MIX_1
        bits = (bits ^ (bits >> np.uint64(27))) * MIX_2
        bits ^= bits >> np.uint64(31)
    sizes = 1 + (bits >> np.uint64(11)).astype(np.float64) / 2**53
    signs = np.where(bits & np.uint64(1), 1.0, -1.0)
    return (signs * sizes).reshape(ROWS, length)


def is_projection(value: Any) -> bool:
    """Whether a tensor was kept as a projection."""
    return isinstance(value, Projection)
