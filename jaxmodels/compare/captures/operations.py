"""The operations of a PyTorch run, as JSON: enough to run them again where the model's code is missing.

Tensors are numbered. Those that no operation returns are weights, inputs or constants, and are kept with the run.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode, get_overridable_functions, resolve_name
from torch.utils import _pytree as pytree

from jaxmodels.compare.diagnosis.replay import operation_name
from jaxmodels.compare.layers import leaves
from jaxmodels.convert.torch_io import to_numpy


# Functions that make tensors of numbers; what others make of something else than tensors is kept as a constant.
FACTORIES = {f"torch.{name}" for name in ("arange", "linspace", "zeros", "ones", "full", "eye")}
IN_PLACE, WITHOUT_GRADIENT = "in place", "no gradient"


class UnrecordableError(Exception):
    """An operation cannot be written down; the message says which."""


class OperationRecorder(TorchFunctionMode):
    """Records what happens while it is entered.

    Args:
      model: whose calls of modules are recorded between the operations.
      inputs: the tensors that the model gets, by name.
      name: of the run, "forward" or "loss".
    """

    def __init__(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.names = {id(tensor): f"inputs/{key}" for key, tensor in inputs.items()}
        weights = model.state_dict(keep_vars=True).items()
        self.names |= {
            id(value): f"weights/{key}" for key, value in weights if isinstance(value, torch.Tensor)
        }
        self.numbers: dict[int, int] = {}
        self.kept: list[torch.Tensor] = []  # alive, so that no other tensor gets the id of one of them
        self.steps: list[list[Any]] = []
        self.sources: dict[int, str] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.problem: str | None = None

    def run(self, call: Callable[[], Any]) -> Any:
        """What `call` returns; its operations are recorded."""
        handles = []
        begun: Counter[str] = Counter()
        running: list[tuple[str, int]] = []

        def before(path: str) -> Callable[..., None]:
            def hook(_module: Any, args: Any, kwargs: Any) -> None:
                self._event((path, begun[path], "input"), (args, kwargs))
                running.append((path, begun[path]))
                begun[path] += 1

            return hook

        def after(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            self._event((*running.pop(), "output"), output)

        for path, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            with self:
                return call()
        finally:
            for handle in handles:
                handle.remove()

    def content(self, result: Any) -> dict[str, Any]:
        """The recording as JSON; `result` is what the run returned, as named leaves."""
        results = [self._number(leaf) if isinstance(leaf, torch.Tensor) else None for leaf in result.values()]
        if self.problem:
            return {"problem": self.problem}
        sources = {str(number): name for number, name in self.sources.items()}
        return {"problem": None, "sources": sources, "steps": self.steps, "results": results}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        versions = [_version(tensor) for tensor in given]
        problem, encoded = None, None
        if self.problem is None:
            try:
                encoded = [_encoded(args, self._number), _encoded(kwargs, self._number)]
            except UnrecordableError as error:
                problem = str(error)
        result = func(*args, **kwargs)
        returned = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        changed = any(_version(tensor) != version for tensor, version in zip(given, versions, strict=True))
        if self.problem or not (returned or changed):
            return result
        name = resolve_name(func) or getattr(func, "__name__", "a function")
        if not given and name not in FACTORIES:
            for tensor in returned:
                self._number(tensor)
        elif problem or encoded is None or not is_known(name):
            self.problem = f"{name}: {problem or 'no function of PyTorch that can be found by its name'}"
        else:
            flags = [IN_PLACE] * changed + [WITHOUT_GRADIENT] * (not torch.is_grad_enabled())
            numbers = [self._number(tensor, made=True) for tensor in returned]
            counted = operation_name(func)
            self.steps.append(["operation", counted, name, *encoded, numbers, flags])
        return result

    def _event(self, key: tuple[str, int, str], values: Any) -> None:
        with torch._C.DisableTorchFunction():
            tensors = leaves(values, lambda leaf: isinstance(leaf, torch.Tensor))
            kept = [one for one in tensors if one.layout == torch.strided and not one.is_nested]
            self.steps.append(["event", *key, [self._number(tensor) for tensor in kept]])

    def _number(self, tensor: torch.Tensor, *, made: bool = False) -> int:
        """The number of a tensor. One that is seen for the first time and was not just made is a source."""
        number = self.numbers.get(id(tensor))
        if number is None:
            number = self.numbers[id(tensor)] = len(self.kept)
            self.kept.append(tensor)
            if not made:
                name = self.names.get(id(tensor), f"constants/{self.name}/{number}")
                self.sources[number] = name
                if name.startswith("constants/"):
                    with torch._C.DisableTorchFunction():
                        self.constants[name.removeprefix("constants/")] = to_numpy(tensor)
        return number


def _version(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return 0 if tensor.is_inference() else tensor._version


def _encoded(value: Any, number: Callable[[torch.Tensor], int]) -> Any:
    """An argument as JSON.

    Raises:
      UnrecordableError: of a kind that JSON cannot stand for.
    """
    match value:
        case torch.Tensor():
            return {"tensor": number(value)}
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": repr(value)}
        case complex():
            return {"complex": [value.real, value.imag]}
        case tuple():
            return {"tuple": [_encoded(one, number) for one in value]}
        case list():
            return [_encoded(one, number) for one in value]
        case dict():
            return {"dict": [[key, _encoded(one, number)] for key, one in value.items()]}
        case slice():
            return {"slice": [_encoded(one, number) for one in (value.start, value.stop, value.step)]}
        case torch.dtype() | torch.memory_format() | torch.layout():
            return {"torch": str(value).removeprefix("torch.")}
        case torch.device():
            return {"device": value.type}
        case np.generic():
            return _encoded(value.item(), number)
    if value is Ellipsis:
        return {"ellipsis": True}
    raise UnrecordableError(f"it gets a {type(value).__name__}, which a capture cannot hold")


def decoded(value: Any, tensor: Callable[[int], torch.Tensor]) -> Any:
    """The inverse of `_encoded`; every tensor is on the CPU.

    Raises:
      ValueError: something that `_encoded` does not write.
    """
    if isinstance(value, list):
        return [decoded(one, tensor) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensor(content)
        case "float":
            return float(content)
        case "complex":
            return complex(*content)
        case "tuple":
            return tuple(decoded(one, tensor) for one in content)
        case "dict":
            return {key: decoded(one, tensor) for key, one in content}
        case "slice":
            return slice(*(decoded(one, tensor) for one in content))
        case "torch" if isinstance(getattr(torch, content), torch.dtype | torch.memory_format | torch.layout):
            return getattr(torch, content)
        case "device":
            return torch.device("cpu")
        case "ellipsis":
            return Ellipsis
    raise ValueError(f"an argument of an unknown kind: {kind}")


_KNOWN: dict[str, Callable[..., Any]] = {}


def is_known(name: str) -> bool:
    """Whether a function may be run by its name: those of PyTorch that compute with tensors, and no others."""
    if not _KNOWN:
        _KNOWN.update({resolve_name(one) or "": one for one in _computing()})
        _KNOWN.update({name: getattr(torch, name.removeprefix("torch.")) for name in FACTORIES})
    return name in _KNOWN


def function_of(name: str) -> Callable[..., Any]:
    """The function of a name.

    Raises:
      ValueError: an unknown name.
    """
    if not is_known(name):
        raise ValueError(f"no function of PyTorch that computes with tensors: {name}")
    return _KNOWN[name]


def _computing() -> Iterator[Callable[..., Any]]:
    for functions in get_overridable_functions().values():
        yield from functions
