"""Do both sides choose the same tokens, and if not, was the choice a toss-up?

A router keeps the k most similar tokens. Where the k-th and the (k+1)-th are closer than the noise of the
arithmetic, either set is right, and everything behind the router differs for a reason that is no fault. Such
rows are counted, and the rest of the comparison repeats PyTorch's choice on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Choice(NamedTuple):
    """What one router chose.

    Attributes:
      name: PyTorch path of the router.
      indices: chosen positions (rows, k); None where all tokens are taken.
      margin: by how much the last chosen token beats the first that was not, per row; empty where all are.
    """

    name: str
    indices: np.ndarray | None
    margin: np.ndarray


@dataclass(frozen=True)
class RouterAgreement:
    """One router on both sides.

    Attributes:
      choices: how many sets were chosen.
      differing: how many of them differ.
      overlap: mean share of common tokens.
      margin: the smallest margin of all rows.
      lost_margin: the largest margin among the rows that differ: how clear a choice was overturned.
      tolerance: the margin up to which a choice is a toss-up.
    """

    name: str
    choices: int
    differing: int
    overlap: float
    margin: float
    lost_margin: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.differing == 0 or self.lost_margin <= self.tolerance


@dataclass(frozen=True)
class Routing:
    """The agreement of all routers, in the order of their calls."""

    routers: list[RouterAgreement]

    @property
    def differing(self) -> int:
        return sum(router.differing for router in self.routers)

    @property
    def first_fault(self) -> RouterAgreement | None:
        """The first router that overturned a clear choice; what later ones see is already different."""
        first = next((router for router in self.routers if router.differing), None)
        return first if first is not None and not first.ok else None


def choices(names: Sequence[str], routed: Sequence[Any]) -> list[Choice]:
    """The choices in what the models' `routing` methods return (fields `indices` and `margin`)."""
    chosen = []
    for name, router in zip(names, routed, strict=True):
        if router.indices is None:
            chosen.append(Choice(name, None, np.zeros(0)))
        else:
            indices = np.asarray(router.indices)
            chosen.append(
                Choice(name, indices.reshape(-1, indices.shape[-1]), np.asarray(router.margin).ravel())
            )
    return chosen


def identical(a: Sequence[Choice], b: Sequence[Choice]) -> bool:
    """Whether all choices agree, in the same order."""
    for one, other in zip(a, b, strict=True):
        if one.indices is None or other.indices is None:
            if one.indices is not other.indices:
                return False
        elif not np.array_equal(one.indices, other.indices):
            return False
    return True


def agreement(
    ours: Sequence[Choice],
    theirs: Sequence[Choice],
    *,
    float32: Sequence[Choice],
    float64: Sequence[Choice],
    least: float,
    factor: float,
    scale: float,
) -> Routing:
    """Compares the choices.

    Args:
      ours, theirs: JAX's and PyTorch's, in the compared type.
      float32, float64: PyTorch's in both types; their distance is the noise of a margin.
      least: the smallest noise, relative to the margin.
      factor: the tolerance in units of the noise.
      scale: rounding of the compared type in units of float32's.
    """
    routers = []
    for our_choice, their_choice, rough, exact in zip(ours, theirs, float32, float64, strict=True):
        name = their_choice.name
        if their_choice.indices is None or our_choice.indices is None:
            unlike = (their_choice.indices is None) != (our_choice.indices is None)
            routers.append(RouterAgreement(name, 0, int(unlike), float(not unlike), 0.0, float(unlike), 0.0))
            continue
        same = ~_differs(rough, exact)
        drift = np.abs(rough.margin - exact.margin)[same].max(initial=0.0) * scale
        noise = max(float(drift), least * float(np.abs(exact.margin).max(initial=1.0)))
        differs = _differs(our_choice, their_choice)
        shares = [_overlap(a, b) for a, b in zip(our_choice.indices, their_choice.indices, strict=True)]
        routers.append(
            RouterAgreement(
                name=name,
                choices=len(their_choice.indices),
                differing=int(differs.sum()),
                overlap=float(np.mean(shares)),
                margin=float(their_choice.margin.min()),
                lost_margin=float(their_choice.margin[differs].max(initial=0.0)),
                tolerance=factor * noise,
            )
        )
    return Routing(routers)


def _differs(a: Choice, b: Choice) -> np.ndarray:
    """Per row, whether the sets differ."""
    if a.indices is None or b.indices is None:
        return np.array([(a.indices is None) != (b.indices is None)])
    return (np.sort(a.indices, axis=-1) != np.sort(b.indices, axis=-1)).any(axis=-1)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return len(np.intersect1d(a, b)) / len(b)
