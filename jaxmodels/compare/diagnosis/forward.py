"""Diagnosis of a difference in the forward pass, from the arrays around the first divergence."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jaxmodels.compare.diagnosis.explain import Compare, explain, norm_of, units_around
from jaxmodels.compare.diagnosis.replay import Replay
from jaxmodels.compare.diagnosis.search import Finding
from jaxmodels.compare.divergence import Divergence
from jaxmodels.compare.layers import Event, Key, differences
from jaxmodels.compare.layouts import standard_layers
from jaxmodels.compare.noise import Check, LayerCheck, relative_error
from jaxmodels.compare.outputs import as_array, axes_of, matched, named_leaves, to_our_axes
from jaxmodels.compare.preparation import Subject, as_tensors
from jaxmodels.compare.training_mode import begin_run


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
    model = copy.deepcopy(subject.models[subject.dtype])  # a run may change its buffers
    check = next((one for one in forward.layers if not one.ok and one.error == divergence.error), None)
    target = None if check is None else (check.name, check.call, check.kind)
    compare = _outputs_agree(subject, forward) if check is None else _event_agrees(subject, forward, check)
    inputs = as_tensors(subject.inputs)

    def call() -> object:
        begin_run(model)
        return forward.call(model, inputs)

    def replays() -> Iterator[Replay]:
        for unit in _units(subject, target):
            with torch.no_grad():
                yield Replay(model, call, unit=unit, target=target)

    norms = _norms(subject, forward, target)
    return explain(replays(), forward.layers, forward.events, target, compare, norms)


def _norms(subject: Subject, forward: Forward, target: Key | None) -> list[float]:
    """The Euclidean norms of JAX's arrays at the event, or of its outputs."""
    if target is None:
        names = dict.fromkeys(_output_names(subject, forward))
        return [norm_of(mine) for _, mine, _ in matched(forward.outputs, names)]
    path, call, kind = target
    twin = next(twin for twin in subject.pair.twins if twin.theirs == path)
    return [norm_of(array) for array in (forward.ours or {})[twin.ours, call, kind].arrays]


def _output_names(subject: Subject, forward: Forward) -> list[str]:
    """PyTorch's, in the order in which the model returns them."""
    model = copy.deepcopy(subject.models[subject.dtype])
    begin_run(model)
    return list(named_leaves(forward.call(model, as_tensors(subject.inputs))))


def _units(subject: Subject, target: Key | None) -> list[str]:
    """Whose call is replayed: the layer itself or the module around it, then the model."""
    if target is None or subject.mode == "train":  # the masks of dropout belong to a whole run
        return [""]
    return units_around(target, {twin.theirs for twin in subject.pair.twins})


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
    names = _output_names(subject, forward)

    def agrees(arrays: tuple[np.ndarray, ...]) -> bool:
        theirs = dict(zip(names, arrays, strict=True))
        pairs = matched(forward.outputs, theirs)
        for name, check, (_, mine, expected) in zip(names, forward.checks, pairs, strict=True):
            aligned = to_our_axes(as_array(expected), mine, axes_of(subject.pair.output_axes, name))
            if relative_error(mine, aligned) > check.tolerance:
                return False
        return True

    return agrees
