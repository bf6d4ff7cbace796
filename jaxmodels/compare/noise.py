"""The tolerance of a comparison: errors, the noise that PyTorch shows against itself, and checks made of both.

Nothing is judged by a tolerance that somebody chose. PyTorch runs in float32 and in float64 on the same
weights and inputs. Their distance is the noise of float32 arithmetic for this model, and JAX may be `FACTOR`
times as far from PyTorch. For float64 the same noise is scaled by the ratio of the two machine epsilons.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np

from jaxmodels.compare.projection import Projection, project


if TYPE_CHECKING:
    from jaxmodels.compare.result import Losses

DType = Literal["float32", "float64"]

# Two float32 computations differ from a third by amounts of the same order, not by the same amount.
FACTOR = 8
# Rounding of a single operation, in units of the machine epsilon: a noise of zero is luck.
LEAST_NOISE = 2
# Above this a tolerance proves nothing: "equal" is never said.
LARGEST_TOLERANCE = 1e-2
# A gradient below this share of the model's largest is measured against the latter.
SMALL_GRADIENT = 1e-6
# A gradient below this many machine epsilons of the model's largest is zero but for rounding.
ROUNDING_GRADIENT = 1e3
# Values that fill masked places are larger than all others by this factor, and equal but for what they were added to.
FILL_RATIO = 1e3
FILL_SPREAD = 1e-2
# Ends the name of a loss that both sides compute at the same weights.
EQUAL_WEIGHTS = " at equal weights"

Arrays = Mapping[str, np.ndarray]
ByType = Mapping[DType, np.ndarray]


@dataclass(frozen=True)
class Check:
    """One number against its tolerance.

    Attributes:
      name: what was compared.
      error: the difference, relative to the largest value of the tensor. For integers and booleans it is the
        share of elements that differ.
      noise: the distance between PyTorch in float32 and in float64, for the compared type.
      tolerance: the largest error that passes.
      undecided: why an error inside the tolerance still proves nothing; None where it does.
    """

    name: str
    error: float
    noise: float
    tolerance: float
    undecided: str | None = None

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


@dataclass(frozen=True, kw_only=True)
class LayerCheck(Check):
    """One call of a layer.

    Attributes:
      call: how often the layer was called before.
      kind: whether its inputs or its outputs were compared.
      binding: whether a difference here is a fault by itself: the table says so, or it is the output of a standard
        layer. Containers that only share a name may divide the work differently.
    """

    call: int
    kind: Literal["input", "output"]
    binding: bool = True


@dataclass(frozen=True)
class Statistic(Check):
    """A running statistic after one forward pass in training mode.

    Attributes:
      reason: the convention whose correction makes the difference vanish; None where there is no difference, or none
        such convention.
      convention: whether the only difference is the one between the libraries' own BatchNorms: no fault of a port.
    """

    reason: str | None = None
    convention: bool = False

    @property
    def ok(self) -> bool:
        return self.convention or super().ok


@dataclass(frozen=True)
class Draw:
    """JAX's tensors and PyTorch's in both types, by PyTorch's names, all computed at the same weights.

    `theirs` shows the noise. Where other tensors of PyTorch are those to compare with, they are `expected`.
    """

    ours: Arrays
    theirs: Mapping[DType, Arrays]
    expected: Arrays | None = None


@dataclass(frozen=True)
class NoiseFloor:
    """Turns measured distances into the noise and the tolerance of the compared type.

    Attributes:
      dtype: the compared type.
      coarsest: the machine epsilon of the coarsest type that PyTorch was seen to use; bfloat16 inside a float32
        model sets the noise of all that comes behind it.
    """

    dtype: DType
    coarsest: float = 0.0

    @property
    def scale(self) -> float:
        """Rounding of the compared type, or of the coarsest, in units of float32's."""
        return min(1.0, max(self._epsilon, self.coarsest) / float(np.finfo(np.float32).eps))

    @property
    def least(self) -> float:
        """The smallest noise that is believed."""
        return max(LEAST_NOISE * self._epsilon, self.coarsest)

    @property
    def _epsilon(self) -> float:
        return float(np.finfo(self.dtype).eps)

    def after(self, arrays: Iterable[np.ndarray]) -> "NoiseFloor":
        """The floor for whatever depends on these arrays."""
        epsilon = coarsest_epsilon(arrays)
        return NoiseFloor(self.dtype, max(self.coarsest, epsilon if epsilon > self._epsilon else 0.0))

    def check(self, name: str, error: float, noise: float) -> Check:
        """A check with `FACTOR` times the noise as its tolerance."""
        noise = max(noise, self.least) if np.isfinite(noise) else self.least
        tolerance = FACTOR * noise
        undecided = None
        if tolerance > LARGEST_TOLERANCE:
            undecided = (
                f"{name}: PyTorch's own noise is {noise:.1e}, so that the tolerance would be {tolerance:.1e}; "
                f"above {LARGEST_TOLERANCE:g} it proves nothing"
            )
        return Check(name, error, noise, tolerance, undecided)


def coarser_sides(in_torch: tuple[str, str] | None, in_jax: tuple[str, str] | None) -> str | None:
    """Why a float64 comparison shows no more than float32's digits; None where all that rounds does so in float64.

    Args:
      in_torch, in_jax: the first operation with a coarser result on each side, and its type.
    """
    found = [
        f"{side} computes in {coarser[1]} (first in {coarser[0]})"
        for side, coarser in (("PyTorch", in_torch), ("JAX", in_jax))
        if coarser
    ]
    if not found:
        return None
    return f"{' and '.join(found)}, so that no more than the digits of float32 can be compared; compare in float32"


def is_inexact(array: Any) -> bool:
    """Whether an array holds floating-point or complex numbers, bfloat16 included."""
    return bool(np.issubdtype(array.dtype, np.inexact)) or array.dtype.kind == "V"  # as ml_dtypes has it


def coarsest_epsilon(arrays: Iterable[np.ndarray]) -> float:
    """The largest machine epsilon among floating-point arrays; 0 where there are none."""
    return max(
        (float(ml_dtypes.finfo(array.dtype).eps) for array in arrays if is_inexact(array)), default=0.0
    )


def relative_error(
    actual: np.ndarray | np.generic | Projection, expected: np.ndarray | np.generic | Projection
) -> float:
    """max |actual - expected| / max |expected|; infinite for unlike shapes.

    Integers and booleans have no scale: their error is the share of elements that differ. Where one side is
    not finite the other must hold the same value. A value that fills masked places, such as -1e9, is no scale for
    the others.
    """
    if actual.shape != expected.shape:
        return float("inf")
    if isinstance(actual, Projection) or isinstance(expected, Projection):
        return _projected_error(actual, expected)
    if expected.size == 0:
        return 0.0
    if not (is_inexact(actual) or is_inexact(expected)):
        return float(np.mean(actual != expected))
    actual, expected = _as_float64(actual), _as_float64(expected)
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return float("inf")
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    actual, expected = actual[finite], expected[finite]
    filled = _fill_values(expected)
    return max(_distance(actual[part], expected[part]) for part in (filled, ~filled))


def projected(array: np.ndarray | np.generic | Projection) -> Projection:
    """The projection of an array, in which values that fill masked places or are not finite are only counted."""
    if isinstance(array, Projection):
        return array
    array = np.asarray(array)
    numbers = _as_float64(array)
    odd = {"nan": np.isnan(numbers)}
    if not np.iscomplexobj(numbers):
        odd |= {"inf": np.isposinf(numbers), "-inf": np.isneginf(numbers)}
    finite = np.where(np.isfinite(numbers), numbers, 0)
    return project(array, {**odd, "fill": _fill_values(finite)})


def _projected_error(actual: Any, expected: Any) -> float:
    actual, expected = projected(actual), projected(expected)
    if {**actual.odd, "fill": 0} != {**expected.odd, "fill": 0}:
        return float("inf")
    return _distance(actual.sums, expected.sums)


def rounding_noise(float32: np.ndarray | Projection, float64: np.ndarray | Projection) -> float:
    """The relative error of PyTorch against itself, where both types are finite."""
    if isinstance(float32, Projection) or isinstance(float64, Projection):
        return relative_error(float32, float64)
    if float32.shape != float64.shape or not is_inexact(float64):
        return relative_error(float32, float64)
    float32, float64 = _as_float64(float32), _as_float64(float64)
    finite = np.isfinite(float32) & np.isfinite(float64)
    float32, float64 = float32[finite], float64[finite]
    filled = _fill_values(float64)
    if np.array_equal(filled, _fill_values(float32)):  # they may be the least number of each type
        float32, float64 = float32[~filled], float64[~filled]
    return _distance(float32, float64)


def output_check(floor: NoiseFloor, name: str, ours: np.ndarray, theirs: ByType, noise: float) -> Check:
    """One output of the models; `noise` is the largest that was measured of it."""
    expected = theirs[floor.dtype]
    if ours.shape == expected.shape and not (is_inexact(ours) or is_inexact(expected)):
        return _exact_check(name, ours, theirs, floor.dtype)
    check = floor.check(name, relative_error(ours, expected), noise * floor.scale)
    reason = check.undecided or _uninformative(name, expected)
    return Check(check.name, check.error, check.noise, check.tolerance, reason)


def _exact_check(name: str, ours: np.ndarray, theirs: ByType, dtype: DType) -> Check:
    """Integers and booleans are compared exactly, except where PyTorch's own precision decides them."""
    settled = theirs["float32"] == theirs["float64"]
    if settled.size and not settled.any():
        return Check(
            name, 0.0, 1.0, 0.0, f"{name}: PyTorch's float32 and float64 agree on none of its values"
        )
    differing = (ours != theirs[dtype])[settled]
    return Check(name, float(differing.mean()) if differing.size else 0.0, float(np.mean(~settled)), 0.0)


def _uninformative(name: str, expected: np.ndarray) -> str | None:
    """Why two equal arrays of these values would prove nothing."""
    if expected.size == 0:
        return f"{name} has no elements"
    numbers = _as_float64(expected)
    if not np.isfinite(numbers).any():
        return f"{name}: no value is finite"
    if not numbers.any():
        return f"{name} is zero everywhere"
    return None


def tensor_checks(floor: NoiseFloor, names: Sequence[str], draws: Sequence[Draw], kind: str) -> list[Check]:
    """One check per PyTorch parameter, worst first.

    With several draws the smallest error is held against the median noise: a fault shows at every point,
    a ReLU that takes the other branch only where its input happens to be within rounding of zero.

    Args:
      names: the parameters, by PyTorch's names.
      draws: gradients (or weights) at one point or at several.
      kind: "gradient" or "weight", for the names of what cannot be judged.
    """
    measured = [_TensorErrors(floor, draw, names) for draw in draws]
    errors = {name: min(part.errors[name] for part in measured) for name in names}
    noises = {name: median(part.noises[name] for part in measured) for name in names}
    typical = median(noises.values()) if noises else 0.0
    checks = []
    for name in names:
        check = floor.check(name, errors[name], max(noises[name], typical))
        if check.undecided:  # smaller than its own noise: measured against the model's largest
            share = min(part.shares[name] for part in measured)
            check = floor.check(name, errors[name] * share, noises[name] * share)
        reason = check.undecided or measured[0].reasons[name]
        reason = f"the {kind} of {reason}" if reason else None
        checks.append(Check(name, check.error, check.noise, check.tolerance, reason))
    if kind == "gradient" and measured[0].largest == 0:
        zero = "every gradient is zero"
        checks = [Check(c.name, c.error, c.noise, c.tolerance, c.undecided or zero) for c in checks]
    return sorted(checks, key=lambda check: closeness(check), reverse=True)


def only_rounding(floor: NoiseFloor, draw: Draw, names: Sequence[str]) -> list[str]:
    """The parameters whose gradient would be zero in exact arithmetic, such as a bias in front of a BatchNorm.

    Adam divides a gradient by its own size. What it makes of rounding errors says nothing about the models.
    """

    def largest(arrays: Arrays, dtype: DType) -> dict[str, float]:
        sizes = {name: _largest(arrays[name]) for name in names}
        limit = ROUNDING_GRADIENT * float(np.finfo(dtype).eps) * max(sizes.values(), default=0.0)
        return {name: size for name, size in sizes.items() if size <= limit}

    exact = largest(draw.theirs["float64"], "float64")
    sides = [largest(draw.theirs[floor.dtype], floor.dtype), largest(draw.ours, floor.dtype)]
    # Zero on both sides is a parameter that takes no part, and then both weights stay equal.
    return [
        name
        for name in names
        if name in exact and all(name in side for side in sides) and any(side[name] for side in sides)
    ]


def with_shared_noise(floor: NoiseFloor, checks: Sequence[Check]) -> list[Check]:
    """The same checks, each with the largest noise among them.

    AdamW divides by a gradient's size: elements that are only noise move by a whole step. How many there are
    in one tensor is luck.
    """
    noise = max((check.noise for check in checks), default=0.0)
    return [
        Check(
            check.name,
            check.error,
            noise,
            FACTOR * noise,
            check.undecided or floor.check("", 0, noise).undecided,
        )
        for check in checks
    ]


def closeness(check: Check) -> float:
    """The error as a share of its tolerance; a sort key, in which NaN comes first."""
    if np.isnan(check.error):
        return float("inf")
    if check.tolerance == 0:
        return float("inf") if check.error else 0.0
    return check.error / check.tolerance


class _TensorErrors:
    """Errors and noises of one draw, relative to each tensor, and what share it has of the largest tensor."""

    def __init__(self, floor: NoiseFloor, draw: Draw, names: Sequence[str]) -> None:
        exact = draw.theirs["float64"]
        theirs = draw.theirs[floor.dtype] if draw.expected is None else draw.expected
        sizes = {name: _largest(exact[name]) for name in names}
        self.largest = max(sizes.values(), default=0.0)
        self.errors: dict[str, float] = {}
        self.noises: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.reasons: dict[str, str | None] = {}
        for name in names:
            least = SMALL_GRADIENT * self.largest
            self.errors[name] = _tensor_error(draw.ours[name], theirs[name], least)
            noise = _tensor_error(draw.theirs["float32"][name], exact[name], least) * floor.scale
            self.noises[name] = noise if np.isfinite(noise) else 0.0
            self.shares[name] = max(sizes[name], least) / self.largest if self.largest else 1.0
            finite = np.isfinite(_as_float64(theirs[name])).any() or theirs[name].size == 0
            self.reasons[name] = None if finite else f"{name}: no value is finite"


def _tensor_error(actual: np.ndarray, expected: np.ndarray, least_scale: float) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = _as_float64(actual), _as_float64(expected)
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return float("inf")
    return _distance(actual[finite], expected[finite], least_scale)


def loss_checks(
    floor: NoiseFloor, losses: "Losses", outputs: Sequence[Check]
) -> tuple[list[Check], list[Check]]:
    """The losses of every step, relative to the loss: (at equal weights, of the two runs)."""
    curves = {name: np.array(values) for name, values in vars(losses).items()}
    ours, theirs = curves["jax"], curves["pytorch"]
    reached = curves[f"jax_weights_{floor.dtype}"]
    gaps = relative_gaps(curves["jax_weights_float32"], curves["jax_weights_float64"], reached) * floor.scale
    # One number may be lucky: it is held neither to less than another step shows nor to less than the outputs.
    noise = max(float(gaps.max()), *(check.noise for check in outputs if check.tolerance), 0.0)
    at_equal_weights = []
    for i, (a, b) in enumerate(zip(ours, reached, strict=True), 1):
        check = floor.check(f"loss {i}{EQUAL_WEIGHTS}", relative_error(a, b), noise)
        reason = check.undecided or (None if np.isfinite(b) else f"loss {i} is not finite")
        at_equal_weights.append(Check(check.name, check.error, check.noise, check.tolerance, reason))
    spread = relative_gaps(curves["pytorch_float32"], curves["pytorch_float64"], theirs) * floor.scale
    spread = np.maximum(spread, relative_gaps(theirs, curves["pytorch_other_threads"], theirs))
    spread = np.maximum.accumulate(spread)  # runs that have drifted apart stay apart
    runs = [
        floor.check(f"loss {i}", relative_error(a, b), max(float(own), noise))
        for i, (a, b, own) in enumerate(zip(ours, theirs, spread, strict=True), 1)
    ]
    return at_equal_weights, runs


def relative_gaps(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """|a - b| / |scale|, and 0 where that is no number."""
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = np.abs(a - b) / np.abs(scale)
    return np.where(np.isfinite(gaps), gaps, 0.0)


def _distance(actual: np.ndarray, expected: np.ndarray, least_scale: float = 0.0) -> float:
    """max |actual - expected| / max |expected| of finite arrays; 0 for equal ones, also where both are zero."""
    if expected.size == 0:
        return 0.0
    difference = float(np.abs(actual - expected).max())
    scale = max(float(np.abs(expected).max()), least_scale)
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")


def _fill_values(array: np.ndarray) -> np.ndarray:
    """Where a finite array holds a value that fills masked places: repeated, and far larger than all others."""
    sizes = np.abs(array)
    largest = sizes.max(initial=0.0)
    filled = sizes >= (1 - FILL_SPREAD) * largest
    others = sizes[~filled].max(initial=0.0)
    if others > 0 and filled.sum() > 1 and largest > FILL_RATIO * others:
        return filled
    return np.zeros_like(filled)


def _largest(array: np.ndarray) -> float:
    sizes = np.abs(_as_float64(array))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def _as_float64(array: np.ndarray | np.generic) -> np.ndarray:
    return np.asarray(array, np.complex128 if np.iscomplexobj(array) else np.float64)
