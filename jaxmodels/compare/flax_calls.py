"""What every module of a Flax model receives and returns, recorded under `nnx.capture`. Needs no PyTorch."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from itertools import count
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxmodels.compare.adapters import adapter_of
from jaxmodels.compare.adapters.recorder import Recorder, eagerly
from jaxmodels.compare.layers import KINDS, Event, Key, Kind, leaves


# Under which names modules record their calls.
SOWN: dict[Kind, str] = {"input": "_recorded_inputs", "output": "_recorded_outputs"}


class ModuleInput(nnx.Variable):
    """The arrays with which a module was called."""


class ModuleOutput(nnx.Variable):
    """The arrays that a call of a module returned."""


def flax_events(model: nnx.Module, call: Callable[[nnx.Module], Any]) -> tuple[Any, dict[Key, Event]]:
    """Runs `call(model)` eagerly – scans as Python loops – and returns its result and its events in order of time."""
    if adapter := adapter_of(model):
        recorder = Recorder()
        with adapter.recording(recorder), eagerly():
            result = call(model)
        return result, {key: Event(*key, arrays) for key, arrays in recorder.calls.items()}
    with _sowing(model), jax.disable_jit():
        result, *states = nnx.capture(call, ModuleInput, ModuleOutput)(model)
    events: list[tuple[int, Event]] = []
    for kind, state in zip(KINDS, states, strict=True):
        for path, module in _modules_of(nnx.to_pure_dict(state)):
            for call_index, (time, *arrays) in enumerate(module.get(SOWN[kind], ())):
                event = Event(path, call_index, kind, tuple(map(np.asarray, arrays)))
                events.append((int(np.min(time)), event))
    return result, {event.key: event for _, event in sorted(events, key=lambda one: one[0])}


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
    clock = count()
    for _, module in nnx.iter_modules(model):
        for kind in type(module).__mro__:
            if "__call__" in vars(kind) and kind not in originals:
                originals[kind] = vars(kind)["__call__"]
                setattr(kind, "__call__", _with_sowing(originals[kind], running, clock))  # noqa: B010 - read-only to type checkers
    try:
        yield
    finally:
        for kind, original in originals.items():
            setattr(kind, "__call__", original)  # noqa: B010


def _with_sowing(method: Callable, running: list[int], clock: Iterator[int]) -> Callable:
    """The call of a class, with its time and its arrays. A parent's call from within it is no call of the module."""

    @wraps(method)  # its signature is what tells names from positions
    def sowing(self, *args, **kwargs):
        if id(self) in running:
            return method(self, *args, **kwargs)
        self.sow(ModuleInput, SOWN["input"], (next(clock), *_arrays((args, kwargs))))
        running.append(id(self))
        try:
            result = method(self, *args, **kwargs)
        finally:
            running.pop()
        self.sow(ModuleOutput, SOWN["output"], (next(clock), *_arrays(result)))
        return result

    return sowing


def _arrays(tree: Any) -> tuple[Any, ...]:
    """The arrays as they are: they may be traced, inside of `nnx.remat`."""
    return leaves(tree, _is_array)


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return isinstance(leaf, np.ndarray)
