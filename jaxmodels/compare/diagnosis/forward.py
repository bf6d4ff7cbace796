"""Diagnosis of a difference in the forward pass, from the arrays around the first divergence."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from jaxmodels.compare.diagnosis.activations import FORMS
from jaxmodels.compare.diagnosis.replay import Operation, Replay
from jaxmodels.compare.diagnosis.search import Deadline, Finding, replayable, search
from jaxmodels.compare.diagnosis.variant import number
from jaxmodels.compare.divergence import Divergence
from jaxmodels.compare.layers import Event, Key, differences
from jaxmodels.compare.layouts import standard_layers
from jaxmodels.compare.noise import Check, LayerCheck, relative_error
from jaxmodels.compare.outputs import as_array, axes_of, matched, named_leaves, to_our_axes
from jaxmodels.compare.preparation import Subject, as_tensors
from jaxmodels.compare.training_mode import begin_run


SECONDS = 20.0  # for one difference
MOST_VALUES = 16  # earlier arrays that JAX may have passed by mistake

Compare = Callable[[tuple[np.ndarray, ...]], bool]


@dataclass(frozen=True, kw_only=True)
class Forward:
    """What the forward pass has shown.

    Attributes:
      events: PyTorch's, in order of time.
      ours: JAX's events by key; None where they could not be recorded.
      outputs: JAX's.
      layers, checks: the checks of layers and of outputs.
      call: runs the PyTorch model on tensors, with the routers' choices where there are any.
    """

    events: Sequence[Event]
    ours: Mapping[Key, Event] | None
    outputs: Mapping[str, np.ndarray]
    layers: Sequence[LayerCheck]
    checks: Sequence[Check]
    call: Callable[..., object]


def diagnose_forward(subject: Subject, forward: Forward, divergence: Divergence) -> list[Finding]:
    """The mistakes that explain the first difference of layers or outputs; empty where none does."""
    deadline = Deadline(SECONDS)
    model = copy.deepcopy(subject.models[subject.dtype])  # a run may change its buffers
    check = next((one for one in forward.layers if not one.ok and one.error == divergence.error), None)
    target = None if check is None else (check.name, check.call, check.kind)
    compare = _outputs_agree(subject, forward) if check is None else _event_agrees(subject, forward, check)
    inputs = as_tensors(subject.inputs)

    def call() -> object:
        begin_run(model)
        return forward.call(model, inputs)

    for unit in _units(subject, target):
        with torch.no_grad():
            replay = Replay(model, call, unit=unit, target=target)
        near, far = _by_distance(replay, forward.layers, target)
        for operations in (near, far):
            found = search(operations, replayable(replay, compare), deadline)
            if found:
                return found
        found = list(_other_values(replay.arrays, forward.events, target, compare))
        if found:
            return found
    return []


def _units(subject: Subject, target: Key | None) -> list[str]:
    """Whose call is replayed: the layer itself or the module around it, then the model."""
    if target is None or subject.mode == "train":  # the masks of dropout belong to a whole run
        return [""]
    path, _, kind = target
    known = {twin.theirs for twin in subject.pair.twins}
    if kind == "output" and path:
        return [path, ""]
    while path:
        path = path.rpartition(".")[0]
        if path in known:
            break
    return [path, ""] if path else [""]


def _by_distance(
    replay: Replay, layers: Sequence[LayerCheck], target: Key | None
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


def _event_agrees(subject: Subject, forward: Forward, check: LayerCheck) -> Compare:
    assert forward.ours is not None
    ours = forward.ours
    model = subject.models[subject.dtype]
    twins = [twin for twin in subject.pair.twins if twin.theirs == check.name]
    known = standard_layers(subject.pair.ours, model, twins)

    def agrees(arrays: tuple[np.ndarray, ...]) -> bool:
        event = Event(check.name, check.call, check.kind, arrays)
        found, _ = differences([event], ours, twins, known=known)
        return bool(found) and found[0].error <= check.tolerance

    return agrees


def _outputs_agree(subject: Subject, forward: Forward) -> Compare:
    """All outputs, in the order in which the model returns them."""
    model = copy.deepcopy(subject.models[subject.dtype])
    begin_run(model)
    names = list(named_leaves(forward.call(model, as_tensors(subject.inputs))))

    def agrees(arrays: tuple[np.ndarray, ...]) -> bool:
        theirs = dict(zip(names, arrays, strict=True))
        pairs = matched(forward.outputs, theirs)
        for name, check, (_, mine, expected) in zip(names, forward.checks, pairs, strict=True):
            aligned = to_our_axes(as_array(expected), mine, axes_of(subject.pair.output_axes, name))
            if relative_error(mine, aligned) > check.tolerance:
                return False
        return True

    return agrees


def _other_values(
    arrays: tuple[np.ndarray, ...], events: Sequence[Event], target: Key | None, compare: Compare
) -> Iterator[Finding]:
    """The difference explained by PyTorch's own array: scaled, activated once more, or another one in its place."""
    if not arrays or not np.issubdtype(arrays[0].dtype, np.floating):
        return
    array, rest = arrays[0], arrays[1:]

    def holds(value: np.ndarray) -> bool:
        return value.shape == array.shape and compare((value, *rest))

    sizes = [size for size in dict.fromkeys(reversed(array.shape)) if size > 1]
    factors = [size**power for size in sizes for power in (0.5, -0.5, 1.0, -1.0)]
    for factor in (*factors, 2.0, 0.5, -1.0, 255.0, 1 / 255):
        if holds((factor * array).astype(array.dtype)):
            what = f"JAX's values are PyTorch's times {number(factor, sizes)}"
            yield Finding("scale", what, "leaving the factor out", "")
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
