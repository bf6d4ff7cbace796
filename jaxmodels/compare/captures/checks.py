"""The checks of two runs: weights, outputs, layers, gradients, the weights after the steps, and losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxmodels.compare.batchnorm_conventions import Update
from jaxmodels.compare.captures.files import Capture, Run
from jaxmodels.compare.captures.levels import FLOAT32, LevelFloor, Noise
from jaxmodels.compare.captures.routes import choices_of
from jaxmodels.compare.captures.tensors import in_their_layout
from jaxmodels.compare.layers import Key, differences, layer_checks_of, noise_of
from jaxmodels.compare.noise import (
    EQUAL_WEIGHTS,
    FACTOR,
    LARGEST_TOLERANCE,
    Check,
    Draw,
    LayerCheck,
    Statistic,
    coarsest_epsilon,
    output_check,
    relative_error,
    rounding_noise,
    tensor_checks,
    with_shared_noise,
)
from jaxmodels.compare.outputs import ANY_AXES, axes_of, matched, to_our_axes
from jaxmodels.compare.projection import Projection
from jaxmodels.compare.result import Losses
from jaxmodels.compare.routing import Routing, agreement
from jaxmodels.convert.table import Entry, Twin


# The classes of `layouts.STANDARD`, which needs Flax to name them.
STANDARD = {
    f"flax.nnx.{name}"
    for name in (
        "Linear", "LinearGeneral", "Conv", "ConvTranspose", "Embed", "LayerNorm", "RMSNorm", "GroupNorm",
        "InstanceNorm", "BatchNorm",
    )
}  # fmt: skip
# Of `layouts.CHANNELS_FIRST`, which needs PyTorch.
CHANNELS_FIRST = (
    "Conv",
    "BatchNorm",
    "InstanceNorm",
    "MaxPool",
    "AvgPool",
    "AdaptiveMaxPool",
    "AdaptiveAvgPool",
)
CHANNELS_FIRST_NAMES = {"GroupNorm", "SyncBatchNorm", "Upsample", "PixelShuffle", "PixelUnshuffle"}
# Of a type coarser than this, root mean squares are compared as well: they vary less than the largest error does.
COARSE = 16 * FLOAT32
# The difference of two runs has √2 times the noise of one; the rest is for how well it is known. It varies little.
RMS_FACTOR = 2


@dataclass(kw_only=True)
class Compared:
    """Two runs and how they correspond.

    Attributes:
      theirs, ours: the runs; PyTorch's is the reference.
      captures: those that they are of.
      table: which parameters and modules are which.
      floor: the tolerances of the level at which they are compared.
      noise: the two runs that measure its noise.
      output_axes: einops patterns from PyTorch's outputs to JAX's.
    """

    theirs: Run
    ours: Run
    captures: tuple[Capture, Capture]
    table: Sequence[Entry]
    floor: LevelFloor
    noise: Noise | None
    output_axes: str | Mapping[str, str] = ANY_AXES

    @cached_property
    def twins(self) -> list[Twin]:
        return [entry for entry in self.table if isinstance(entry, Twin)]

    @property
    def is_coarse(self) -> bool:
        return self.floor.level > COARSE

    def tensors(self, kind: str) -> Draw:
        """Weights, gradients or weights after the steps of all runs under PyTorch's names, in its layout."""
        ours, theirs = getattr(self.ours, kind), getattr(self.theirs, kind)
        mine, (expected,) = in_their_layout(self.table, ours, [theirs])
        shown = expected, expected
        if self.noise is not None:
            runs = [getattr(run, kind) for run in (self.noise.coarse, self.noise.fine)]
            if self.noise.is_reference:
                shown = tuple(in_their_layout(self.table, ours, [run])[1][0] for run in runs)
            else:
                shown = tuple(in_their_layout(self.table, run, [theirs])[0] for run in runs)
        common = [name for name in mine if all(name in part for part in shown)]
        mine, expected, coarse, fine = (
            {name: part[name] for name in common} for part in (mine, expected, *shown)
        )
        return Draw(mine, {"float32": coarse, "float64": fine}, expected)


def weight_differences(compared: Compared) -> list[Check]:
    """One check per weight before the first step: both sides must hold the same numbers."""
    draw = compared.tensors("weights")
    checks = []
    for name, mine in draw.ours.items():
        expected = (draw.expected or {})[name]
        rounding = 0.0 if mine.dtype == expected.dtype else coarsest_epsilon([mine, expected])
        # Projections are sums of float64, in which another order of summation rounds otherwise.
        tolerance = max(rounding, 1e-12 if _is_projected(compared, name) else 0.0)
        checks.append(Check(name, relative_error(mine, expected), tolerance, tolerance))
    return checks


def _is_projected(compared: Compared, name: str) -> bool:
    return isinstance(compared.theirs.weights[name], Projection)


def check_outputs(compared: Compared) -> list[Check]:
    """One check per output.

    Raises:
      PairError: the two sides have outputs of different names.
    """
    floor, checks = compared.floor, []
    pairs = zip(compared.theirs.outputs, compared.ours.outputs, strict=False)
    keys = list(compared.theirs.outputs if len(compared.theirs.outputs) > 1 else dict(pairs))
    for key, (name, mine, expected) in zip(
        keys, matched(compared.ours.outputs, compared.theirs.outputs), strict=True
    ):
        shown = _shown_outputs(compared, key)
        scaled = rounding_noise(*shown) if shown else 0.0
        axes = axes_of(compared.output_axes, key)
        expected = to_our_axes(expected, mine, axes)
        if isinstance(expected, Projection) or isinstance(mine, Projection):
            checks.append(floor.check(name, relative_error(mine, expected), scaled * floor.scale))
            continue
        fine = expected
        if shown and compared.noise and compared.noise.is_reference:
            fine = to_our_axes(shown[1], mine, axes)
        check = output_check(floor, name, mine, {"float32": expected, "float64": fine}, scaled)
        checks.append(_with_root_mean_square(compared, check, mine, expected, shown))
    return checks


def _shown_outputs(compared: Compared, key: str) -> tuple[Any, Any] | None:
    """The output of the two runs that show the noise; JAX's name of it may be another one."""
    if compared.noise is None:
        return None
    if not compared.noise.is_reference and key not in compared.ours.outputs:
        key = next(iter(compared.ours.outputs))
    runs = compared.noise.coarse.outputs, compared.noise.fine.outputs
    return (runs[0][key], runs[1][key]) if key in runs[0] and key in runs[1] else None


def _with_root_mean_square(
    compared: Compared, check: Check, ours: np.ndarray, theirs: np.ndarray, shown: tuple[Any, Any] | None
) -> Check:
    """For coarse types, the check of the root mean square where the one of the largest error proves nothing."""
    if (
        not compared.is_coarse
        or not check.ok
        or not check.undecided
        or compared.floor.unmeasured
        or shown is None
    ):
        return check
    if ours.shape != theirs.shape:
        return check
    return _mean_check(compared, check, _mean_distance(ours, theirs), _mean_distance(*shown))


def _mean_check(compared: Compared, check: Check, error: float, noise: float) -> Check:
    """The check of a mean; between its tolerance and that of single values it proves nothing."""
    noise = max(noise * compared.floor.scale, compared.floor.level / 4)
    name = f"{check.name} (root mean square)"
    if error > FACTOR * noise:
        return Check(name, error, noise, FACTOR * noise)
    if error > RMS_FACTOR * noise or RMS_FACTOR * noise > LARGEST_TOLERANCE:
        return check
    return Check(name, error, noise, RMS_FACTOR * noise)


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(array, np.float64) for array in (a, b))
    scale = float(np.sqrt(np.mean(b**2))) if b.size else 0.0
    return float(np.sqrt(np.mean((a - b) ** 2))) / scale if scale > 0 else float("inf")


def check_layers(compared: Compared) -> tuple[list[LayerCheck], dict[str, str]]:
    """One check per call of a module and kind, in the reference's order; and the modules without one, with a reason."""
    if not (compared.theirs.events and compared.ours.events):
        return [], {twin.theirs: "its calls were not recorded" for twin in compared.twins}
    other = {event.key: event for event in compared.ours.events}
    found, missing = differences(
        compared.theirs.events, other, compared.twins, known=standard_layers(compared)
    )
    by_key = {event.key: event for event in compared.theirs.events}
    return layer_checks_of(found, by_key, _event_noise(compared), compared.floor), missing


def _event_noise(compared: Compared) -> dict[Key, float]:
    if compared.noise is None:
        return {}
    fine = {event.key: event for event in compared.noise.fine.events}
    noise = {
        event.key: noise_of(event, fine[event.key])
        for event in compared.noise.coarse.events
        if event.key in fine
    }
    if compared.noise.is_reference:
        return noise
    theirs = {twin.ours: twin.theirs for twin in compared.twins}
    return {
        (theirs[path], call, kind): value for (path, call, kind), value in noise.items() if path in theirs
    }


def standard_layers(compared: Compared) -> dict[str, bool]:
    """As `layouts.standard_layers`, from the names of classes."""
    theirs, ours = (capture.modules for capture in compared.captures)
    found = {}
    for twin in compared.twins:
        package, name = theirs.get(twin.theirs, "").rpartition(".")[::2]
        ours_package, ours_name = ours.get(twin.ours, "").rpartition(".")[::2]
        if f"{'.'.join(ours_package.split('.')[:2])}.{ours_name}" in STANDARD and package.startswith(
            "torch.nn."
        ):
            first = name.startswith(CHANNELS_FIRST) and name.endswith(("1d", "2d", "3d"))
            found[twin.theirs] = first or name in CHANNELS_FIRST_NAMES
    return found


def check_gradients(compared: Compared) -> list[Check]:
    """One check per parameter that both sides learn."""
    return _check_tensors(compared, "gradients", "gradient")


def check_weights_after(compared: Compared) -> list[Check]:
    """One check per parameter after the steps; none for coarse types, in which optimisers make steps of noise."""
    if compared.is_coarse or not compared.theirs.weights_after:
        return []
    checks = _check_tensors(compared, "weights_after", "weight")
    return checks if compared.floor.unmeasured else with_shared_noise(compared.floor, checks)


def _check_tensors(compared: Compared, kind: str, word: str) -> list[Check]:
    draw = compared.tensors(kind)
    learned = set(compared.captures[0].learned)
    names = [name for name in draw.ours if name in learned]
    checks = []
    for check in tensor_checks(compared.floor, names, [draw], word):
        shown = draw.theirs["float32"][check.name], draw.theirs["float64"][check.name]
        expected = (draw.expected or {})[check.name]
        checks.append(_with_root_mean_square(compared, check, draw.ours[check.name], expected, shown))
    return [replace(check, name=check.name.partition(" (")[0]) for check in checks]


def check_losses(compared: Compared, outputs: Sequence[Check], *, trained_alike: bool = True) -> list[Check]:
    """The first loss, and in float64 those of the steps; float32 runs drift apart at kinks, which is no fault."""
    ours, theirs = (np.array(run.losses) for run in (compared.ours, compared.theirs))
    count = min(len(ours), len(theirs))
    if compared.floor.level >= FLOAT32 or not trained_alike:
        count = min(count, 1)
    shown = (compared.noise.coarse.losses, compared.noise.fine.losses) if compared.noise else (theirs, theirs)
    noise = max((check.noise for check in outputs if check.tolerance), default=0.0)
    checks = []
    for i in range(count):
        gap = 0.0
        if min(len(shown[0]), len(shown[1])) > i and shown[1][i]:
            gap = abs(shown[0][i] - shown[1][i]) / abs(shown[1][i])
        noise = max(noise, gap * compared.floor.scale)
        name = f"loss {i + 1}" + (EQUAL_WEIGHTS if i == 0 else "")
        check = compared.floor.check(name, relative_error(ours[i], theirs[i]), noise)
        if compared.is_coarse and check.ok and check.undecided and compared.floor.unmeasured is None:
            check = replace(_mean_check(compared, check, check.error, gap), name=name)
        reason = check.undecided or (None if np.isfinite(theirs[i]) else f"loss {i + 1} is not finite")
        checks.append(replace(check, undecided=reason))
    return checks


def check_statistics(compared: Compared, notes: list[str]) -> list[Statistic]:
    """One check per running statistic that the forward pass in training mode changes on a side."""
    draw, before = compared.tensors("statistics"), compared.theirs.weights
    checks = []
    for name, mine in draw.ours.items():
        old, new = before.get(name), (draw.expected or {})[name]
        if old is None or (relative_error(mine, old) == 0 and relative_error(new, old) == 0):
            continue
        noise = (
            rounding_noise(draw.theirs["float32"][name], draw.theirs["float64"][name]) * compared.floor.scale
        )
        check = compared.floor.check(name, relative_error(mine, new), noise)
        reason, convention = None, False
        if not check.ok and isinstance(old, np.ndarray):
            momentum, count = compared.theirs.batch_norms.get(name.rpartition(".")[0], (None, 0))

            def agree(actual: np.ndarray, expected: np.ndarray, noise: float = noise) -> bool:
                return compared.floor.check("", relative_error(actual, expected), noise).ok

            reason, convention = Update(momentum, old, new, count).explained(name, mine, agree)
            if convention:
                notes.append(f"{name}: {reason}, and this is not counted")
        checks.append(Statistic(**vars(check), reason=reason, convention=convention))
    return checks


def compare_routing(compared: Compared) -> Routing | None:
    """How far the routers of both sides agree on the inputs; None without routers."""
    names = compared.captures[0].settings["routers"]
    if not names or compared.captures[1].settings["routers"] != names:
        return None
    shown = (
        (compared.noise.coarse, compared.noise.fine) if compared.noise else (compared.theirs, compared.theirs)
    )
    ours, theirs, float32, float64 = (
        choices_of(run.routing, names) for run in (compared.ours, compared.theirs, *shown)
    )
    least, scale = compared.floor.least, compared.floor.scale
    return agreement(ours, theirs, float32=float32, float64=float64, least=least, factor=FACTOR, scale=scale)


def losses_of(compared: Compared) -> Losses:
    """The curves of a report."""
    by_type: dict[str, list[float]] = {}
    if compared.noise is not None and compared.noise.is_reference:
        by_type = {run.dtype: run.losses for run in (compared.noise.coarse, compared.noise.fine)}
    count = min(len(compared.ours.losses), len(compared.theirs.losses))
    return Losses(
        jax=compared.ours.losses[:count],
        pytorch=compared.theirs.losses[:count],
        pytorch_float32=by_type.get("float32", []),
        pytorch_float64=by_type.get("float64", []),
    )
