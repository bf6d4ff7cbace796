"""What every layer receives and returns on both sides, and how far apart the two are.

`torch_calls` and `flax_calls` record the two sides, each without the other framework. The weight table says which
modules are twins. PyTorch's order of events is the order of depth. The first event that differs is an input – then the
fault lies in the code of the module that passes it – or an output, and then it lies in the module that returns it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
from einops import EinopsError, rearrange

from jaxmodels.compare.alignment import aligned
from jaxmodels.compare.noise import (
    LayerCheck,
    NoiseFloor,
    is_inexact,
    projected,
    relative_error,
    rounding_noise,
)
from jaxmodels.compare.projection import Projection, is_projection
from jaxmodels.convert.table import Twin


Kind = Literal["input", "output"]
LARGEST_MASK = -1e4  # or less is added to the logits of masked places
KINDS: tuple[Kind, ...] = ("input", "output")
Key = tuple[str, int, str]  # path, call, kind


class Event(NamedTuple):
    """One call of one module, at its beginning or at its end.

    Attributes:
      path: dotted path of the module; "" is the model.
      call: how often the module was called before.
      kind: "input" or "output".
      arrays: all NumPy arrays that go in or come out, in order; large ones of a capture are projections.
    """

    path: str
    call: int
    kind: Kind
    arrays: tuple[Any, ...]

    @property
    def key(self) -> Key:
        return self.path, self.call, self.kind


class Difference(NamedTuple):
    """An event on both sides.

    Attributes:
      path, call, kind: which event.
      error: infinite where the two have unlike shapes.
      binding: whether the two modules must agree; see `LayerCheck`.
    """

    path: str
    call: int
    kind: Kind
    error: float
    binding: bool


def differences(
    events: Sequence[Event], other: Mapping[Key, Event], twins: Iterable[Twin], *, known: Mapping[str, bool]
) -> tuple[list[Difference], dict[str, str]]:
    """The error of every PyTorch event whose twin was recorded, in PyTorch's order, and why others have none.

    Args:
      events: PyTorch's.
      other: Flax's, by key.
      twins: which modules belong together.
      known: the PyTorch paths of standard layers, and whether these hold their channels on axis 1.

    Returns:
      The differences, and a reason for each PyTorch path of `twins` of which no call could be compared.
    """
    by_path = {twin.theirs: twin for twin in twins}
    compared: list[Difference] = []
    for event in events:
        twin = by_path.get(event.path)
        counterpart = other.get((twin.ours, event.call, event.kind)) if twin else None
        if twin is None or counterpart is None or not (event.arrays and counterpart.arrays):
            continue
        if twin.axes is None:
            error = _inferred_error(event, counterpart, known.get(event.path, False))
            binding = event.path in known and event.kind == "output" and bool(np.isfinite(error))
        else:
            axes = twin.output_axes if event.kind == "output" and twin.output_axes else twin.axes
            error, binding = _declared_error(event, counterpart, axes), True
        compared.append(Difference(event.path, event.call, event.kind, error, binding))
    with_a_number = {one.path for one in compared if one.binding or np.isfinite(one.error)}
    called = {event.path for event in events}, {path for path, _, _ in other}
    return compared, {
        path: _reason(path in called[0], twin.ours in called[1])
        for path, twin in by_path.items()
        if path not in with_a_number
    }


def layer_checks_of(
    found: Iterable[Difference], events: Mapping[Key, Event], noise: Mapping[Key, float], floor: NoiseFloor
) -> list[LayerCheck]:
    """One check per difference, in the same order.

    Args:
      found: what `differences` returned.
      events: PyTorch's by key; a type coarser than the compared one sets the floor of all that comes behind it.
      noise: of PyTorch's events, before the floor's scale.
      floor: at the beginning.
    """
    checks: list[LayerCheck] = []
    seen: list[float] = []
    for one in found:
        key = one.path, one.call, one.kind
        floor = floor.after(events[key].arrays)
        seen.append(noise.get(key, 0.0) * floor.scale)
        # A single layer may be lucky: none is held to less than half of what came before shows.
        check = floor.check(one.path, one.error, max(seen[-1], median(seen)))
        checks.append(LayerCheck(**vars(check), call=one.call, kind=one.kind, binding=one.binding))
    return checks


def noise_of(event: Event, other: Event) -> float:
    """The distance of one event between PyTorch in float32 and in float64."""
    pairs = zip(event.arrays, other.arrays, strict=False)
    return max((rounding_noise(a, b) for a, b in pairs), default=0.0)


def _reason(called_in_torch: bool, called_in_flax: bool) -> str:
    if called_in_torch and called_in_flax:
        return "its arrays have unlike shapes on the two sides, or it has none"
    sides = [name for name, called in (("PyTorch", called_in_torch), ("JAX", called_in_flax)) if not called]
    return f"never called as a module in {' and '.join(sides)}"


def _declared_error(theirs: Event, ours: Event, axes: str) -> float:
    """The worst error of the arrays; a second argument in a layout of its own is left out."""
    error = 0.0
    for i, (a, b) in enumerate(zip(theirs.arrays, ours.arrays, strict=False)):
        if isinstance(a, Projection):
            rearranged = a.rearranged(axes)
            if rearranged is None:  # axes that are merged or split
                error = max(error, _moments_error(b, a))
                continue
            a = rearranged
        else:
            a = _to_our_axes(a, b, axes)
        if a.shape != b.shape and i > 0:
            continue
        error = max(error, relative_error(b, a))
    return error


def _inferred_error(theirs: Event, ours: Event, channels_first: bool) -> float:
    """The same where the shapes must tell the layout; of several that fit the closest counts."""
    error = 0.0
    for i, (a, b) in enumerate(zip(theirs.arrays, ours.arrays, strict=False)):
        errors = [_argument_error(y, x) for x, y in aligned(a, b, channels_first=channels_first)]
        if errors:
            error = max(error, min(errors))
        elif (is_projection(a) or is_projection(b)) and a.size == b.size:
            error = max(error, _moments_error(b, a))
        elif i == 0:
            return float("inf")
    return error


def _argument_error(ours: np.ndarray | Projection, theirs: np.ndarray | Projection) -> float:
    """The relative error; 0 for masks that say the same, be it by True, by False or by what is added to logits."""
    masks = _as_mask(ours), _as_mask(theirs)
    if (
        masks[0] is not None
        and masks[1] is not None
        and np.all(masks[0] ^ masks[1] == (masks[0] ^ masks[1]).flat[0])
    ):
        return 0.0
    return relative_error(ours, theirs)


def _moments_error(ours: np.ndarray | Projection, theirs: np.ndarray | Projection) -> float:
    """The distance of what does not depend on the layout."""
    return relative_error(projected(ours).moments, projected(theirs).moments)


def _as_mask(array: np.ndarray | Projection) -> np.ndarray | None:
    if isinstance(array, Projection):
        return None
    if array.dtype == bool and array.size:
        return array
    if (
        array.size
        and is_inexact(array)
        and np.all((array == 0) | (array <= LARGEST_MASK))
        and (array != 0).any()
    ):
        return array == 0
    return None


def _to_our_axes(array: np.ndarray, counterpart: np.ndarray, axes: str) -> np.ndarray:
    right = axes.split(" -> ")[1]
    if right == "...":
        return array
    names = right.split()
    sizes = {n: s for n, s in zip(names, counterpart.shape, strict=False) if n in axes.split(" -> ")[0]}
    try:
        return rearrange(array, axes, **sizes)
    except EinopsError:  # an argument of another rank, such as a mask
        return array


def leaves(tree: Any, is_array: Callable[[Any], bool]) -> tuple[Any, ...]:
    """The arrays in nested tuples, lists and dicts, in order."""
    match tree:
        case _ if is_array(tree):
            return (tree,)
        case Mapping():
            return tuple(array for value in tree.values() for array in leaves(value, is_array))
        case tuple() | list():
            return tuple(array for value in tree for array in leaves(value, is_array))
        case _:
            return ()
