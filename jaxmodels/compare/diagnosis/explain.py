"""Which mistakes explain a difference of the forward pass, once PyTorch's operations can be run again.

Needs no JAX: the operations may come from a model or from a capture.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from jaxmodels.compare.diagnosis.activations import FORMS
from jaxmodels.compare.diagnosis.replay import Operation, Replayed
from jaxmodels.compare.diagnosis.search import Deadline, Finding, replayable, search
from jaxmodels.compare.diagnosis.variant import number
from jaxmodels.compare.layers import Event, Key
from jaxmodels.compare.noise import LayerCheck


SECONDS = 20.0  # for one difference
LEAST_VALUES = 4  # of which one factor is no accident
MOST_VALUES = 16  # earlier arrays that JAX may have passed by mistake

Compare = Callable[[tuple[np.ndarray, ...]], bool]


def explain(
    replays: Iterable[Replayed],
    layers: Sequence[LayerCheck],
    events: Sequence[Event],
    target: Key | None,
    compare: Compare,
    norms: Sequence[float] = (),
) -> list[Finding]:
    """The mistakes that explain a difference; empty where none does.

    Args:
      replays: PyTorch's run up to the difference: of the module around it, then of the model.
      layers: the checks of all layers.
      events: PyTorch's, in order of time.
      target: the event that differs; None for the outputs.
      compare: whether arrays in place of PyTorch's are JAX's.
      norms: the Euclidean norm of each of JAX's arrays, in PyTorch's order; empty where they are not known.
    """
    deadline = Deadline(SECONDS)
    for replay in replays:
        near, far = _by_distance(replay, layers, target)
        for operations in (near, far):
            found = search(operations, replayable(replay, compare), deadline)
            if found:
                return found
        found = list(_scaled(replay.arrays, norms, compare))
        found = found or list(_other_values(replay.arrays, events, target, compare))
        if found:
            return found
    return []


def units_around(target: Key, known: Collection[str]) -> list[str]:
    """Whose call is run again: the layer itself or the known module around it, then the model."""
    path, _, kind = target
    if kind == "output" and path:
        return [path, ""]
    while path:
        path = path.rpartition(".")[0]
        if path in known:
            break
    return [path, ""] if path else [""]


def _by_distance(
    replay: Replayed, layers: Sequence[LayerCheck], target: Key | None
) -> tuple[list[Operation], list[Operation]]:
    """Operations between the last call that agrees and the difference, then those before.

    What agreeing layers compute inside is right.
    """
    end = replay.times.get(target, len(replay.times)) if target else len(replay.times)
    agreeing = {(c.name, c.call, c.kind) for c in layers if c.ok and np.isfinite(c.error)}
    last = max((t for key, t in replay.times.items() if key in agreeing and t < end), default=-1)
    right = {(name, call) for name, call, kind in agreeing if kind == "output" and name}
    usable = [one for one in replay.operations if not right.intersection(one.within)]
    return [one for one in usable if one.time > last], [one for one in usable if one.time <= last]


def _scaled(arrays: tuple[np.ndarray, ...], norms: Sequence[float], compare: Compare) -> Iterator[Finding]:
    """A constant factor between JAX's array and PyTorch's, whatever the layout of the two."""
    if len(norms) != len(arrays):
        return
    for place, (array, norm) in enumerate(zip(arrays, norms, strict=True)):
        own = norm_of(array)
        if not 0 < own < np.inf or not 0 < norm < np.inf or len(np.unique(array)) < LEAST_VALUES:
            continue
        for factor in (norm / own, -norm / own):
            changed = (*arrays[:place], (factor * array).astype(array.dtype), *arrays[place + 1 :])
            if compare(changed):
                sizes = [size for size in dict.fromkeys(reversed(array.shape)) if size > 1]
                what = f"JAX's values are PyTorch's times {number(factor, sizes)}"
                yield Finding("scale", what, "leaving the factor out", "")
                return


def norm_of(array: np.ndarray) -> float:
    """The Euclidean norm; NaN where the values are no real numbers."""
    if not np.issubdtype(array.dtype, np.floating):
        return float("nan")
    return float(np.linalg.norm(array.astype(np.float64).ravel()))


def _other_values(
    arrays: tuple[np.ndarray, ...], events: Sequence[Event], target: Key | None, compare: Compare
) -> Iterator[Finding]:
    """The difference explained by PyTorch's own array: reversed, activated once more, or another one in its place."""
    if not arrays or not np.issubdtype(arrays[0].dtype, np.floating):
        return
    array, rest = arrays[0], arrays[1:]

    def holds(value: np.ndarray) -> bool:
        return value.shape == array.shape and compare((value, *rest))

    for axis, size in enumerate(array.shape):
        if size > 1 and holds(np.flip(array, axis)):
            what = f"JAX's values run backwards along axis {axis} of PyTorch's"
            yield Finding("reversed axis", what, "PyTorch's order", "")
            return
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    extra = {form.name: form.function for form in FORMS}
    extra |= {
        "the softmax": partial(torch.softmax, dim=-1),
        "the log softmax": partial(torch.log_softmax, dim=-1),
    }
    extra |= {
        "a layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
        "a normalisation": partial(F.normalize, dim=-1),
    }
    for name, function in extra.items():
        if holds(function(tensor).numpy()):
            yield Finding("activation", f"JAX applies {name} that PyTorch does not", "leaving it out", "")
            return
    yield from _passed_instead(array, events, target, holds)


def _passed_instead(
    array: np.ndarray, events: Sequence[Event], target: Key | None, holds: Callable[[np.ndarray], bool]
) -> Iterator[Finding]:
    """What earlier modules get or return, and sums of two of them, in place of the right array."""
    end = next((i for i, event in enumerate(events) if event.key == target), len(events))
    earlier: list[tuple[str, np.ndarray]] = []
    for event in reversed(events[:end]):
        verb = "gets" if event.kind == "input" else "returns"
        name = f"what {event.path or 'the model'} {verb}"
        for one in event.arrays:
            if one.shape == array.shape and not any(np.array_equal(one, other) for _, other in earlier):
                earlier.append((name, one))
    earlier = earlier[:MOST_VALUES]
    for name, one in earlier:
        if not np.array_equal(one, array) and holds(one):
            yield Finding("other value", f"JAX passes {name} on", "PyTorch's value", "")
            return
    for i, (name, one) in enumerate(earlier):
        for other_name, other in earlier[i + 1 :]:
            if holds(one + other):
                what = f"JAX passes the sum of {other_name} and {name} on"
                yield Finding("residual", what, "PyTorch's sum", "")
                return
