"""One call of a PyTorch module, run again with single operations computed in another way."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from jaxmodels.compare.layers import Key
from jaxmodels.compare.torch_calls import arrays_of


# Operations that compute nothing: questions about a tensor, and switches.
SILENT = {
    "get", "set", "dim", "size", "numel", "stride", "is_contiguous", "contiguous", "is_floating_point", "is_complex",
    "len", "bool", "int", "float", "item", "set_grad_enabled", "requires_grad", "element_size", "ndimension",
    "type_as", "shape", "dtype", "device", "assert_async", "data_ptr", "storage_offset", "get_device", "format",
    "repr", "hash", "tolist", "numpy", "cpu", "is_same_size", "equal", "index", "backward",
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One call of a PyTorch function, as the model made it.

    Attributes:
      index: its place among all operations of the replayed call.
      name: of the function, without underscores: "gelu", "getitem", "add".
      function, args, kwargs: the call itself.
      within: the calls of modules that make it, the innermost last.
      after: the last event of a module before it; None where there was none.
      time: how many such events there were before it.
    """

    index: int
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    within: tuple[tuple[str, int], ...]
    after: Key | None
    time: int

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among its arguments."""
        return [
            leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)
        ]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that may be given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)


# Computes an operation in another way: gets its function and arguments, returns what replaces its result.
Change = Callable[..., Any]


@runtime_checkable
class Replayed(Protocol):
    """What a search asks of a call that can be run again; see `Replay`."""

    operations: list[Operation]
    times: dict[Key, int]
    arrays: tuple[np.ndarray, ...]

    def run(self, changes: Mapping[int, Change]) -> tuple[np.ndarray, ...]: ...


class Replay:
    """A call that ends in one event, or in the outputs of the model.

    Attributes:
      operations: those of the call, in order, up to the event.
      times: when each event happened, among all events of the run.
      arrays: what PyTorch has at the event.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        call: Callable[[], Any],
        *,
        unit: str,
        target: Key | None,
    ) -> None:
        """Runs the model once and keeps the call of `unit` in which `target` happens.

        Args:
          model: in evaluation mode.
          call: runs the model.
          unit: PyTorch path of the module whose call is replayed; "" replays `call`.
          target: the event; None for what `call` returns.
        """
        self.model, self.unit, self.target = model, model.get_submodule(unit), target
        self.call = call
        recorder = _Recorder(model, unit, target)
        self.arrays = recorder.run(call)
        self.operations = recorder.operations
        self.times = recorder.times
        self.occurrence = recorder.occurrence
        if unit:
            args, kwargs = recorder.arguments
            self.call = lambda: self.unit(*_copied(args), **_copied(kwargs))

    def run(self, changes: Mapping[int, Change]) -> tuple[np.ndarray, ...]:
        """The arrays at the event when operations are changed, by their index.

        Raises:
          Exception: whatever a change that does not fit raises.
        """
        target = None if self.target is None else (self.model.get_submodule(self.target[0]), self.target[2])
        with _stopping_at(target, self.occurrence) as reached, _Changing(changes):
            try:
                result = self.call()
            except _Reached:
                return arrays_of(reached[0])
        return arrays_of(result)

    def result(self, changes: Mapping[int, Change]) -> Any:
        """What the whole call returns when operations are changed, as it is."""
        with _Changing(changes):
            return self.call()


class _Reached(BaseException):
    """The event has happened; what follows is not needed."""


class _Changing(TorchFunctionMode):
    """Counts operations and replaces some of them."""

    def __init__(self, changes: Mapping[int, Change]) -> None:
        super().__init__()
        self.changes, self.count = changes, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation_name(func)
        if name is None:
            return func(*args, **(kwargs or {}))
        change = self.changes.get(self.count)
        self.count += 1
        return func(*args, **(kwargs or {})) if change is None else change(func, *args, **(kwargs or {}))


class _Recorder(TorchFunctionMode):
    """Runs the whole model and keeps the operations of one call of the unit."""

    def __init__(self, model: torch.nn.Module, unit: str, target: Key | None) -> None:
        super().__init__()
        self.model, self.unit, self.target = model, unit, target
        self.operations: list[Operation] = []
        self.arguments: tuple[Any, Any] = ((), {})
        self.occurrence = 0  # of the target module's calls within the unit's call
        self.reached: Any = None
        self.running: list[tuple[str, int]] = []
        self.begun: Counter[str] = Counter()
        self.last: Key | None = None
        self.times: dict[Key, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation_name(func)
        if name is not None:
            index, within, time = len(self.operations), tuple(self.running), len(self.times)
            self.operations.append(
                Operation(index, name, func, args, dict(kwargs or {}), within, self.last, time)
            )
        return func(*args, **(kwargs or {}))

    def run(self, call: Callable[[], Any]) -> tuple[np.ndarray, ...]:
        handles = []
        for path, module in self.model.named_modules():
            handles.append(
                module.register_forward_pre_hook(self._before(path), with_kwargs=True, prepend=True)
            )
            handles.append(module.register_forward_hook(self._after(path), with_kwargs=True))
        try:
            with self:
                result = call()
        except _Reached:
            return arrays_of(self.reached)
        finally:
            for handle in handles:
                handle.remove()
        if self.target is not None:
            raise RuntimeError("the event did not happen again")
        return arrays_of(result)

    def _before(self, path: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            if path == self.unit and path:
                self.operations, self.occurrence = [], 0
                self.arguments = _copied(args), _copied(kwargs)
            self._event((path, self.begun[path], "input"), (args, kwargs))
            if self.target is not None and path == self.target[0]:
                self.occurrence += 1
            self.running.append((path, self.begun[path]))
            self.begun[path] += 1

        return hook

    def _after(self, path: str) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            self._event((*self.running.pop(), "output"), output)

        return hook

    def _event(self, key: Key, values: Any) -> None:
        if key == self.target:
            self.reached = values
            if key[2] == "output":
                self.occurrence -= 1
            raise _Reached
        self.last = key
        self.times[key] = len(self.times)


@contextmanager
def _stopping_at(target: tuple[torch.nn.Module, str] | None, occurrence: int) -> Generator[list[Any]]:
    """Ends the run at a call of a module, counted from 0, and keeps what it gets or returns."""
    reached: list[Any] = []
    if target is None:
        yield reached
        return
    module, kind = target
    seen = 0

    def before(_module: Any, args: Any, kwargs: Any) -> None:
        nonlocal seen
        if kind == "input" and seen == occurrence:
            reached.append((args, kwargs))
            raise _Reached
        seen += 1

    def after(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        if kind == "output" and seen == occurrence + 1:
            reached.append(output)
            raise _Reached

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def operation_name(function: Any) -> str | None:
    """The name of a PyTorch function without underscores; None for those that compute nothing."""
    name = getattr(function, "__name__", "").strip("_")
    return None if not name or name in SILENT else name


def _copied(tree: Any) -> Any:
    """Nested arguments with copies of all tensors, so that a run in place leaves them as they are."""
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), tree)
