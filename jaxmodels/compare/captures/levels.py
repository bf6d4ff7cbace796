"""With how many digits a run computed, and the tolerance of runs that compute with so many.

The noise of a type is the distance between two captures of one side, in this type and in a finer one. Where no capture
has just the type that is compared, the noise of the nearest one is scaled by the ratio of the machine epsilons.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxmodels.compare.captures.files import Capture, Run
from jaxmodels.compare.noise import (
    FACTOR,
    LARGEST_TOLERANCE,
    LEAST_NOISE,
    Check,
    NoiseFloor,
    coarsest_epsilon,
)
from jaxmodels.compare.precision import LARGEST_FLOAT32_ERROR, LARGEST_TF32_ERROR
from jaxmodels.compare.projection import is_projection


FLOAT32 = float(np.finfo(np.float32).eps)
TF32 = 2.0**-10
BFLOAT16 = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)
# A finer run has fewer errors by this factor or more; otherwise the distance of two runs is the noise of both.
FINER = 2.0**8
# The noise of one type times more than this does not stand for a coarser one's: float32's says little of TF32's.
LARGEST_RATIO = 2.0**4


class Noise(NamedTuple):
    """Two runs of one side, of which the first shows the noise.

    Attributes:
      coarse, fine: the runs.
      is_reference: whether they are of the reference's side, with its names.
      ratio: by which the noise is multiplied for the level that is compared.
    """

    coarse: Run
    fine: Run
    is_reference: bool
    ratio: float


@dataclass(frozen=True)
class LevelFloor(NoiseFloor):
    """Tolerances of runs with a given number of digits.

    Attributes:
      level: the machine epsilon of the coarser of both runs.
      ratio: that of `Noise`.
      unmeasured: why no noise is known at the level that is compared, so that a finer one's stands for it; None
        where it was measured.
    """

    level: float = FLOAT32
    ratio: float = 1.0
    unmeasured: str | None = None

    @property
    def scale(self) -> float:
        return self.ratio

    @property
    def least(self) -> float:
        return max(LEAST_NOISE * self.level if self.level <= FLOAT32 else self.level, self.coarsest)

    def after(self, arrays: Any) -> "LevelFloor":
        epsilon = coarsest_epsilon(array for array in arrays if not is_projection(array))
        coarsest = max(self.coarsest, epsilon if epsilon > self.level else 0.0)
        return LevelFloor(self.dtype, coarsest, self.level, self.ratio, self.unmeasured)

    def check(self, name: str, error: float, noise: float) -> Check:
        """As of every floor. Where the noise of the level is unknown, what is above a finer one's is undecided."""
        if self.unmeasured is None:
            return super().check(name, error, noise)
        noise = max(noise, self.least) if np.isfinite(noise) else self.least
        undecided = None if error <= FACTOR * noise else f"{name} differs by {error:.1e}: {self.unmeasured}"
        return Check(name, error, noise, max(LARGEST_TOLERANCE, FACTOR * noise), undecided)


def products_of(run: Run) -> str:
    """The type of a run's matrix products and convolutions, as sentences name it."""
    error = error_of(run)
    if run.dtype != "float32" or error < LARGEST_FLOAT32_ERROR:
        return run.dtype
    return "TF32" if error < LARGEST_TF32_ERROR else "bfloat16"


def error_of(run: Run) -> float:
    """The largest error of the float32 products that were tried under a run's settings."""
    return max((float("inf") if value is None else value for value in run.products.values()), default=0.0)


def epsilon_of(run: Run) -> float:
    """The machine epsilon of the coarsest type that a run's settings made it use."""
    return {
        "float64": float(np.finfo(np.float64).eps),
        "float32": FLOAT32,
        "TF32": TF32,
        "bfloat16": BFLOAT16,
    }[products_of(run)]


def find_noise(level: float, reference: Sequence[Capture], other: Sequence[Capture]) -> Noise | None:
    """The runs that measure the noise nearest to `level`; those of the reference's side where both sides have some."""
    found = []
    for captures, is_reference in ((reference, True), (other, False)):
        runs = [run for capture in captures for run in capture.runs.values()]
        for coarse in runs:
            fine = min(runs, key=epsilon_of)
            if epsilon_of(coarse) >= FINER * epsilon_of(fine):
                ratio = level / epsilon_of(coarse)
                found.append(
                    (abs(math.log2(ratio)), not is_reference, Noise(coarse, fine, is_reference, ratio))
                )
    return min(found, key=lambda one: one[:2])[2] if found else None
