"""The forward pass of both sides: outputs, every layer, every router, and whether a second run returns the same."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxmodels.compare.adapters import adapter_of
from jaxmodels.compare.calls import PairError, failures_explained
from jaxmodels.compare.flax_calls import flax_events
from jaxmodels.compare.layers import Event, Key, differences, layer_checks_of, noise_of
from jaxmodels.compare.layouts import standard_layers
from jaxmodels.compare.noise import (
    FACTOR,
    Check,
    DType,
    LayerCheck,
    NoiseFloor,
    coarsest_epsilon,
    is_inexact,
    output_check,
    relative_error,
    rounding_noise,
)
from jaxmodels.compare.outputs import (
    ANY_AXES,
    as_array,
    axes_of,
    check_axes,
    left_out,
    matched,
    named_leaves,
    to_our_axes,
)
from jaxmodels.compare.pair import Inputs
from jaxmodels.compare.preparation import Models, Subject, as_jax_arrays, as_tensors, cast
from jaxmodels.compare.routing import Routing, agreement, choices, identical
from jaxmodels.compare.stacks import per_layer
from jaxmodels.compare.steps import RoutingIndices, torch_routing
from jaxmodels.compare.torch_calls import torch_events
from jaxmodels.compare.torch_mode import restore_statistics, statistics_of
from jaxmodels.compare.training_mode import begin_run
from jaxmodels.convert.torch_io import to_numpy


Outputs = dict[str, np.ndarray]
DTYPES: tuple[DType, DType] = ("float32", "float64")
# Two runs of the Flax model that differ by more may be random.
LARGEST_REPEAT_ERROR = 1e-4


class Router:
    """Compares what the routers of both sides choose; compiled once for all steps."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        pair = subject.pair
        assert pair.routing_ours is not None
        self.route = jax.jit(pair.routing_ours)

    def compare(
        self, inputs: Inputs, ours: nnx.Module, models: Models
    ) -> tuple[Routing, RoutingIndices, bool]:
        """How far the routers agree, what PyTorch's chose, and whether all runs chose the same in the same order."""
        pair, floor = self.subject.pair, self.subject.floor
        assert pair.routing_theirs is not None
        in_jax = choices(pair.routers, self.route(ours, as_jax_arrays(pair, inputs)))
        with torch.no_grad():
            routed = {
                dtype: pair.routing_theirs(models[dtype], as_tensors(cast(inputs, dtype))) for dtype in DTYPES
            }
        in_torch = {dtype: choices(pair.routers, found) for dtype, found in routed.items()}
        routing = agreement(
            in_jax,
            in_torch[floor.dtype],
            float32=in_torch["float32"],
            float64=in_torch["float64"],
            least=floor.least,
            factor=FACTOR,
            scale=floor.scale,
        )
        indices = [None if r.indices is None else to_numpy(r.indices) for r in routed[floor.dtype]]
        # Also where only the order differs: what comes behind keeps it.
        same = identical(in_jax, in_torch[floor.dtype])
        return routing, indices, same and identical(in_torch["float32"], in_torch["float64"])


def compare_routing(subject: Subject, router: Router) -> Routing:
    """Compares the routers' choices on the inputs; where any two runs differ, all of them repeat PyTorch's."""
    routing, indices, same = router.compare(subject.inputs, subject.pair.ours, subject.models)
    if not same:
        subject.routing_indices = indices
    if routing.differing:
        subject.notes.append(
            f"routing: {routing.differing} sets differ between JAX and PyTorch; "
            "layers and gradients are compared with PyTorch's choice on both sides"
        )
    return routing


class TorchForward:
    """What PyTorch returns in both types, and every call of every module on the way."""

    def __init__(self, subject: Subject, models: Models) -> None:
        runs = {dtype: _torch_run(subject, models[dtype], dtype) for dtype in DTYPES}
        self.outputs = {dtype: outputs for dtype, (outputs, _) in runs.items()}
        self.events = {dtype: events for dtype, (_, events) in runs.items()}

    def floor(self, subject: Subject) -> NoiseFloor:
        """The noise floor behind everything that PyTorch computed in the compared type."""
        arrays = [array for event in self.events[subject.dtype] for array in event.arrays]
        return subject.floor.after([*arrays, *self.outputs[subject.dtype].values()])

    def output_noise(self) -> dict[str, float]:
        """The distance of every output between the two types."""
        float32, float64 = self.outputs["float32"], self.outputs["float64"]
        return {
            name: rounding_noise(float32[name], value) for name, value in float64.items() if name in float32
        }

    def event_noise(self) -> dict[Key, float]:
        """The distance of every event between the two types."""
        float64 = {event.key: event for event in self.events["float64"]}
        return {
            event.key: noise_of(event, float64[event.key])
            for event in self.events["float32"]
            if event.key in float64
        }


def _torch_run(subject: Subject, model: torch.nn.Module, dtype: DType) -> tuple[Outputs, list[Event]]:
    call = repeating(subject.pair.call_theirs, subject, torch_routing)
    inputs = as_tensors(cast(subject.inputs, dtype))
    way_out = "its inputs are those of the pair, passed by call_theirs"
    if dtype == "float64":
        way_out += "; it must run in float64 as well, from which its noise is measured"
    begin_run(model)
    statistics = statistics_of(model)
    with torch.no_grad(), failures_explained("the PyTorch model", way_out):
        result, events = torch_events(model, lambda: call(model, inputs))
        subject.notes += left_out(result, "PyTorch")
        outputs = {name: as_array(leaf) for name, leaf in named_leaves(result).items()}
    if subject.mode == "train":
        restore_statistics(model, statistics)
    return outputs, events


def refuse_random_torch(subject: Subject, first: TorchForward) -> None:
    """Runs PyTorch a second time on equal inputs.

    Raises:
      PairError: an output differs; the first module that returned something else is named.
    """
    dtype = subject.dtype
    outputs, events = _torch_run(subject, subject.models[dtype], dtype)
    if all(_repeats(a, outputs.get(name), subject) for name, a in first.outputs[dtype].items()):
        return
    place = "the model's own code"
    for a, b in zip(first.events[dtype], events, strict=False):
        if a.key != b.key or not all(map(partial(_repeats, subject=subject), a.arrays, b.arrays)):
            place = f"{a.path or 'the model'}'s {a.kind}" if a.path else place
            break
    raise PairError(
        "the PyTorch model returns other values when it runs a second time on the same inputs, although "
        f"{_mode(subject)} (first seen in {place}): a random function, such as functional dropout without "
        "training=self.training, or state that a call changes; switch it off before comparing"
    )


def _mode(subject: Subject) -> str:
    if subject.mode == "train":
        return "its dropout layers repeat their masks in training mode"
    return "it is in evaluation mode"


def _repeats(a: np.ndarray, b: np.ndarray | None, subject: Subject) -> bool:
    return b is not None and relative_error(b, a) <= FACTOR * subject.floor.least


def jax_outputs(subject: Subject, model: nnx.Module) -> Outputs:
    """What the Flax model returns, compiled as users run it."""
    call = repeating(subject.pair.call_ours, subject, _jax_routing)
    inputs = as_jax_arrays(subject.pair, subject.inputs)
    graphdef, state = nnx.split(model)

    names: list[str] = []

    @jax.jit
    def run(state, values):
        model = nnx.merge(graphdef, state)
        result = call(model, dict(zip(inputs, values, strict=True)))
        subject.notes += left_out(result, "JAX")
        leaves = named_leaves(result)
        names[:] = leaves
        return [jnp.asarray(leaf) for leaf in leaves.values()]

    adapter = adapter_of(model)
    way_out = _way_out_of_jax(subject, inputs)
    with failures_explained(f"the {adapter.library if adapter else 'Flax'} model", way_out):
        arrays = run(state, list(inputs.values()))
    return {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}


def _way_out_of_jax(subject: Subject, inputs: Mapping[str, Any]) -> str:
    """What to look at where the JAX model fails: its inputs, and what such a model usually needs."""
    shapes = ", ".join(f"{name} of shape {value.shape}" for name, value in inputs.items())
    way_out = f"its inputs are what to_ours returns, {shapes}, passed by call_ours"
    adapter = adapter_of(subject.pair.ours)
    if adapter and adapter.hint:
        return f"{way_out}; {adapter.hint}"
    shared = inputs.keys() & subject.inputs.keys()
    images = sorted(x for x in shared if inputs[x].ndim > 3 and inputs[x].shape == subject.inputs[x].shape)
    if not images:
        return way_out
    moved = f"to_ours=lambda inputs: inputs | {{{images[0]!r}: np.moveaxis(inputs[{images[0]!r}], 1, -1)}}"
    return f"{way_out}; a model that takes channels last needs {moved}"


def jax_layers(subject: Subject) -> tuple[Outputs, dict[Key, Event] | None]:
    """The Flax model once more, operation by operation and with other random keys: outputs and every call.

    None in place of the calls where they cannot be recorded, such as inside of jax.vmap or jax.checkpoint.
    """
    call = repeating(subject.pair.call_ours, subject, _jax_routing)
    inputs = as_jax_arrays(subject.pair, subject.inputs)
    model = _with_other_keys(subject.pair.ours)
    try:
        with failures_explained(
            "the Flax model, run under jax.disable_jit()",
            "calls of layers inside of vmap or jax.checkpoint cannot be recorded; those inside of nnx.remat can",
        ):
            result, events = flax_events(model, lambda model: call(model, inputs))
            events = per_layer(events, subject.pair.twins, stacked=adapter_of(model) is None)
            return {name: as_array(leaf) for name, leaf in named_leaves(result).items()}, events
    except PairError as error:
        subject.notes.append(f"no layer was compared: {error}")
        return jax_outputs(subject, _with_other_keys(subject.pair.ours)), None


def refuse_random_jax(subject: Subject, outputs: Outputs, eager: Outputs) -> None:
    """Compares the two runs of the Flax model, and compiles it once more where they differ.

    Raises:
      PairError: two compiled runs differ.
    """
    if all(relative_error(eager[name], value) <= LARGEST_REPEAT_ERROR for name, value in outputs.items()):
        return
    # It may also be code that rounds badly: operation by operation, other digits are lost.
    again = jax_outputs(subject, _with_other_keys(subject.pair.ours))
    for name, value in outputs.items():
        if not _repeats(value, again[name], subject):
            raise PairError(
                "the Flax model returns other values when it runs a second time on the same inputs (output "
                f"{name or 0}), although {_mode(subject)}: a random function that does not ask for "
                "`deterministic`, or NumPy's random numbers; switch it off before comparing"
            )


def _with_other_keys(model: nnx.Module) -> nnx.Module:
    """A copy that draws other random numbers."""
    model = nnx.clone(model)
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.RngKey):
            node.set_value(jax.random.fold_in(node.get_value(), 1))
    return model


def note_coarser_types(subject: Subject, events: Mapping[Key, Event] | None, theirs: TorchForward) -> None:
    """Finds a layer that computes in a coarser type in JAX than in PyTorch.

    In float64 it is a layer with a fixed `dtype`, and the comparison shows no more than in float32.
    """
    twins = {twin.theirs: twin.ours for twin in subject.pair.twins}
    for event in theirs.events[subject.dtype]:
        ours = (events or {}).get((twins.get(event.path, ""), event.call, event.kind))
        if event.kind == "input" or event.path not in twins or ours is None:
            continue
        floors = [coarsest_epsilon(one.arrays[:1]) for one in (ours, event)]
        if floors[0] > floors[1] > 0:
            types = [one.arrays[0].dtype for one in (ours, event)]
            sentence = f"{event.path}: JAX computes in {types[0]}, PyTorch in {types[1]}"
            if subject.dtype == "float64" and types[0] == np.float32:
                subject.floor = subject.floor.after(ours.arrays[:1])
                subject.unjudged.append(f"{sentence}; remove its dtype=, or compare in float32")
            else:
                subject.notes.append(sentence)
            return


def output_checks(
    subject: Subject, ours: Outputs, theirs: TorchForward, noise: Mapping[str, float]
) -> list[Check]:
    """One check per output.

    Raises:
      PairError: the two sides return outputs of different names.
    """
    if not theirs.outputs[subject.dtype]:
        raise PairError(
            "the models return nothing that can be compared: return arrays from call_ours and call_theirs"
        )
    check_axes(subject.pair.output_axes, theirs.outputs[subject.dtype])
    keys = list(theirs.outputs[subject.dtype])
    checks = []
    for key, (name, mine, expected) in zip(keys, matched(ours, theirs.outputs[subject.dtype]), strict=True):
        axes = axes_of(subject.pair.output_axes, key)
        by_type = {dtype: to_our_axes(theirs.outputs[dtype][key], mine, axes) for dtype in DTYPES}
        if axes == ANY_AXES and by_type[subject.dtype].shape != expected.shape:
            subject.notes.append(
                f"{name}: PyTorch's channels, on axis 1, are compared with the last axis in JAX"
            )
        check = output_check(subject.floor, name, mine, by_type, noise.get(key, 0.0))
        if not check.ok and axes == ANY_AXES and mine.ndim > 2:
            moved = {dtype: np.moveaxis(value, 1, -1) for dtype, value in by_type.items()}
            check = _ambiguous(output_check(subject.floor, name, mine, moved, noise.get(key, 0.0))) or check
        checks.append(check)
    ours_alike = (np.size(value) and np.all(value == np.ravel(value)[0]) for value in ours.values())
    if not any(map(is_inexact, ours.values())) and all(ours_alike):
        subject.unjudged.append("no output is floating-point, and all values of each are the same")
    return checks


def _ambiguous(check: Check) -> Check | None:
    """An output that agrees once PyTorch's channels are moved, where the shapes agree without that too."""
    if not check.ok:
        return None
    reason = (
        f"{check.name} agrees only if PyTorch's channels, on axis 1, are compared with the last axis in JAX; if that "
        "is meant, give output_axes, such as 'b c h w -> b h w c'"
    )
    return replace(check, undecided=reason)


def layer_checks(
    subject: Subject, events: Mapping[Key, Event] | None, theirs: TorchForward, noise: Mapping[Key, float]
) -> tuple[list[LayerCheck], dict[str, str]]:
    """One check per call of a module and kind, in PyTorch's order; and the modules without one, with a reason."""
    pair = subject.pair
    if events is None:
        return [], {twin.theirs: "calls in JAX could not be recorded" for twin in pair.twins}
    known = standard_layers(pair.ours, subject.models[subject.dtype], pair.twins)
    found, missing = differences(theirs.events[subject.dtype], events, pair.twins, known=known)
    by_key = {event.key: event for event in theirs.events[subject.dtype]}
    floor = NoiseFloor(subject.dtype, subject.floor.coarsest if subject.unjudged else 0.0)
    return layer_checks_of(found, by_key, noise, floor), missing


def repeating(function: Callable, subject: Subject, convert: Callable[[RoutingIndices], Any]) -> Callable:
    """`function` with the routers' choice to repeat, where there is one."""
    if subject.routing_indices is None:
        return function
    return partial(function, routing=convert(subject.routing_indices))


def _jax_routing(indices: RoutingIndices) -> list[jax.Array | None]:
    return [None if one is None else jnp.asarray(one) for one in indices]
