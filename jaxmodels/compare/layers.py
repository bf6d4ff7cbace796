"""What every layer receives and returns on both sides, and where the two first part.

PyTorch runs with a hook on every submodule; the Flax model runs under `nnx.capture`. The weight table says
which modules are twins. PyTorch's order of events is the order of depth: the first event that differs is an
input – then the fault lies in the code of the module that passes it – or an output, and then it lies in the
module that returns it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import torch
from einops import EinopsError, rearrange
from flax import nnx

from jaxmodels.convert.table import Twin
from jaxmodels.convert.torch_io import to_numpy


Kind = Literal["input", "output"]
Key = tuple[str, int, str]  # path, call, kind


class Event(NamedTuple):
    """One call of one module, at its beginning or at its end.

    Attributes:
      path: dotted path of the module; "" is the model.
      call: how often the module was called before.
      kind: "input" or "output".
      arrays: all arrays that go in or come out, in order.
    """

    path: str
    call: int
    kind: Kind
    arrays: tuple[np.ndarray, ...]

    @property
    def key(self) -> Key:
        return self.path, self.call, self.kind


class Difference(NamedTuple):
    """An event on both sides: the error and the scale that it is relative to."""

    path: str
    call: int
    kind: Kind
    error: float


class ModuleInput(nnx.Variable):
    """The arrays with which a module was called. No Intermediate: `nnx.capture` would sort it among the outputs."""


def torch_events(model: torch.nn.Module, call: Callable[[], Any]) -> tuple[Any, list[Event]]:
    """Runs `call` and returns its result and all events of `model`'s submodules in order of time."""
    events: list[Event] = []
    begun: Counter[str] = Counter()
    open_calls: defaultdict[str, list[int]] = defaultdict(list)

    def before(path: str):
        def hook(_module, args, kwargs):
            open_calls[path].append(begun[path])
            events.append(Event(path, begun[path], "input", _arrays((args, kwargs))))
            begun[path] += 1

        return hook

    def after(path: str):
        def hook(_module, _args, _kwargs, output):
            events.append(Event(path, open_calls[path].pop(), "output", _arrays(output)))

        return hook

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(module.register_forward_hook(after(path), with_kwargs=True))
    try:
        result = call()
    finally:
        for handle in handles:
            handle.remove()
    return result, events


def flax_events(model: nnx.Module, call: Callable[[nnx.Module], Any]) -> dict[Key, Event]:
    """Runs `call(model)` eagerly – scans as Python loops – and returns its events by key."""
    with _sowing_inputs(model), jax.disable_jit():
        captured = nnx.capture(call, nnx.Intermediate, ModuleInput, method_outputs=nnx.Intermediate)
        _, *states = captured(model)
    outputs, inputs = states
    events: dict[Key, Event] = {}
    kinds: tuple[tuple[Kind, Any, str], ...] = (("input", inputs, "inputs"), ("output", outputs, "__call__"))
    for kind, state, name in kinds:
        for path, module in _modules_of(nnx.to_pure_dict(state)):
            for call_index, value in enumerate(module.get(name, ())):
                event = Event(path, call_index, kind, _arrays(value))
                events[event.key] = event
    return events


def differences(
    events: Sequence[Event], other: Mapping[Key, Event], twins: Iterable[Twin]
) -> list[Difference]:
    """The error of every PyTorch event whose twin was recorded, in PyTorch's order."""
    by_path = {twin.theirs: twin for twin in twins}
    found = []
    for event in events:
        twin = by_path.get(event.path)
        mate = twin and other.get((twin.ours, event.call, event.kind))
        if mate:
            axes = twin.output_axes if event.kind == "output" and twin.output_axes else twin.axes
            found.append(Difference(event.path, event.call, event.kind, _event_error(event, mate, axes)))
    return found


def distance(event: Event, other: Event) -> float:
    """The error of one event between two runs of one model."""
    return _event_error(event, other, "... -> ...")


def parent_of(difference: Difference, twins: Iterable[Twin]) -> str:
    """The innermost module with a twin around `difference.path`; "" is the model."""
    known = {twin.theirs for twin in twins}
    path = difference.path
    while path:
        path = path.rpartition(".")[0]
        if path in known:
            break
    return path


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |actual - expected| / max |expected|; for integers and booleans 0 or 1; infinite for unlike shapes.

    Where one side is not finite the other must hold the same value.
    """
    if actual.shape != expected.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    if not np.issubdtype(np.asarray(expected).dtype, np.floating):
        return float(not np.array_equal(actual, expected))
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return float("inf")
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = float(np.abs(actual[finite] - expected[finite]).max())
    scale = float(np.abs(expected[finite]).max())
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")


def _event_error(theirs: Event, ours: Event, axes: str) -> float:
    """The worst error of the arrays; a second argument in a layout of its own is left out."""
    error = 0.0
    for i, (a, b) in enumerate(zip(theirs.arrays, ours.arrays, strict=False)):
        a = _to_our_axes(a, b, axes)
        if a.shape != b.shape and i > 0:
            continue
        error = max(error, relative_error(b, a))
    return error


def _to_our_axes(array: np.ndarray, mate: np.ndarray, axes: str) -> np.ndarray:
    right = axes.split(" -> ")[1]
    if right == "...":
        return array
    names = right.split()
    sizes = {n: s for n, s in zip(names, mate.shape, strict=False) if n in axes.split(" -> ")[0]}
    try:
        return rearrange(array, axes, **sizes)
    except EinopsError:  # an argument of another rank, such as a mask
        return array


def _arrays(tree: Any) -> tuple[np.ndarray, ...]:
    """All arrays in nested tuples, lists and dicts, in order, as NumPy."""
    match tree:
        case torch.Tensor():
            return (to_numpy(tree),)
        case jax.Array() | np.ndarray():
            return () if jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key) else (np.asarray(tree),)
        case Mapping():
            return tuple(array for value in tree.values() for array in _arrays(value))
        case tuple() | list():
            return tuple(array for value in tree for array in _arrays(value))
        case _:
            return ()


def _modules_of(state: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted path, captured entries) of every module in a pure dict of captures."""
    yield path, {k: v for k, v in state.items() if isinstance(v, tuple)}
    for name, child in state.items():
        if isinstance(child, Mapping):
            yield from _modules_of(child, f"{path}.{name}" if path else str(name))


@contextmanager
def _sowing_inputs(model: nnx.Module) -> Generator[None]:
    """Lets every module record its inputs; `nnx.capture` alone records outputs."""
    originals = {}
    for _, module in nnx.iter_modules(model):
        kind = type(module)
        if "__call__" in vars(kind) and kind not in originals:
            originals[kind] = vars(kind)["__call__"]
            setattr(kind, "__call__", _with_sown_inputs(originals[kind]))  # noqa: B010 - read-only to type checkers
    try:
        yield
    finally:
        for kind, original in originals.items():
            setattr(kind, "__call__", original)  # noqa: B010


def _with_sown_inputs(method: Callable) -> Callable:
    def sowing(self, *args, **kwargs):
        self.sow(ModuleInput, "inputs", _arrays((args, kwargs)))
        return method(self, *args, **kwargs)

    return sowing
