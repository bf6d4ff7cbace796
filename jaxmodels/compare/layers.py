"""What every layer receives and returns on both sides, and how far apart the two are.

PyTorch runs with a hook on every submodule. The Flax model runs with calls that record, under `nnx.capture`. The
weight table says which modules are twins. PyTorch's order of events is the order of depth. The first event that
differs is an input – then the fault lies in the code of the module that passes it – or an output, and then it lies
in the module that returns it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import torch
from einops import EinopsError, rearrange
from flax import nnx

from jaxmodels.compare.alignment import aligned
from jaxmodels.compare.noise import is_inexact, relative_error, rounding_noise
from jaxmodels.convert.table import Twin
from jaxmodels.convert.torch_io import to_numpy


Kind = Literal["input", "output"]
LARGEST_MASK = -1e4  # or less is added to the logits of masked places
KINDS: tuple[Kind, ...] = ("input", "output")
# Under which names modules record their calls.
SOWN: dict[Kind, str] = {"input": "_recorded_inputs", "output": "_recorded_outputs"}
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


class ModuleInput(nnx.Variable):
    """The arrays with which a module was called."""


class ModuleOutput(nnx.Variable):
    """The arrays that a call of a module returned."""


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


def flax_events(model: nnx.Module, call: Callable[[nnx.Module], Any]) -> tuple[Any, dict[Key, Event]]:
    """Runs `call(model)` eagerly – scans as Python loops – and returns its result and its events by key."""
    with _sowing(model), jax.disable_jit():
        result, *states = nnx.capture(call, ModuleInput, ModuleOutput)(model)
    events: dict[Key, Event] = {}
    for kind, state in zip(KINDS, states, strict=True):
        for path, module in _modules_of(nnx.to_pure_dict(state)):
            for call_index, value in enumerate(module.get(SOWN[kind], ())):
                event = Event(path, call_index, kind, tuple(map(np.asarray, value)))
                events[event.key] = event
    return result, events


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
        elif i == 0:
            return float("inf")
    return error


def _argument_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The relative error; 0 for masks that say the same, be it by True, by False or by what is added to logits."""
    masks = _as_mask(ours), _as_mask(theirs)
    if (
        masks[0] is not None
        and masks[1] is not None
        and np.all(masks[0] ^ masks[1] == (masks[0] ^ masks[1]).flat[0])
    ):
        return 0.0
    return relative_error(ours, theirs)


def _as_mask(array: np.ndarray) -> np.ndarray | None:
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


def _arrays(tree: Any) -> tuple[np.ndarray, ...]:
    """All tensors in nested tuples, lists and dicts, in order, as NumPy; without sparse and nested ones."""
    tensors = (leaf for leaf in _leaves(tree) if isinstance(leaf, torch.Tensor))
    return tuple(to_numpy(one) for one in tensors if one.layout == torch.strided and not one.is_nested)


def _leaves(tree: Any) -> tuple[Any, ...]:
    """The same as they are: JAX's may be traced, inside of `nnx.remat`."""
    match tree:
        case torch.Tensor() | np.ndarray():
            return (tree,)
        case jax.Array():
            return () if jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key) else (tree,)
        case Mapping():
            return tuple(array for value in tree.values() for array in _leaves(value))
        case tuple() | list():
            return tuple(array for value in tree for array in _leaves(value))
        case _:
            return ()


def _modules_of(state: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted path, captured entries) of every module in a pure dict of captures."""
    yield path, {k: v for k, v in state.items() if isinstance(v, tuple)}
    for name, child in state.items():
        if isinstance(child, Mapping):
            yield from _modules_of(child, f"{path}.{name}" if path else str(name))


@contextmanager
def _sowing(model: nnx.Module) -> Generator[None]:
    """Lets every module record what its calls get and return, inherited calls as well."""
    originals: dict[type, Callable] = {}
    running: list[int] = []
    for _, module in nnx.iter_modules(model):
        for kind in type(module).__mro__:
            if "__call__" in vars(kind) and kind not in originals:
                originals[kind] = vars(kind)["__call__"]
                setattr(kind, "__call__", _with_sowing(originals[kind], running))  # noqa: B010 - read-only to type checkers
    try:
        yield
    finally:
        for kind, original in originals.items():
            setattr(kind, "__call__", original)  # noqa: B010


def _with_sowing(method: Callable, running: list[int]) -> Callable:
    """The call of a class. A parent's call from within it is no call of the module."""

    @wraps(method)  # its signature is what tells names from positions
    def sowing(self, *args, **kwargs):
        if id(self) in running:
            return method(self, *args, **kwargs)
        self.sow(ModuleInput, SOWN["input"], _leaves((args, kwargs)))
        running.append(id(self))
        try:
            result = method(self, *args, **kwargs)
        finally:
            running.pop()
        self.sow(ModuleOutput, SOWN["output"], _leaves(result))
        return result

    return sowing
