"""What the comparison needs of a library: its arrays, a callable model, the calls of its modules, its layouts."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmodels.compare.adapters.recorder import Recorder
from jaxmodels.compare.calls import PairError


class Place(NamedTuple):
    """A variable and where it belongs.

    Attributes:
      layer: dotted path of the module that holds it; "" is the model.
      name: its name in that module.
      shape: its shape.
      twin: the PyTorch module with the same path, if there is one. No adapter needs PyTorch to be installed.
    """

    layer: str
    name: str
    shape: tuple[int, ...]
    twin: Any


class Layout(NamedTuple):
    """How PyTorch names and lays out a variable; see `Parameter`."""

    name: str
    axes: str = "... -> ..."
    flip: int = 0
    sizes: tuple[tuple[str, int], ...] = ()


class Attention(NamedTuple):
    """The names and layouts in a library's multi-head attention; `parts` are queries, keys, values and output."""

    parts: tuple[str, str, str, str]
    weight: str
    bias: str
    weight_axes: str
    bias_axes: str
    output_axes: str


class Cell(NamedTuple):
    """Where a library's recurrent cell keeps PyTorch's weights.

    Attributes:
      kind: "LSTM", "GRU" or "RNN", as PyTorch calls it.
      inputs, state: the variables that are `weight_ih` and `weight_hh`: one, or one per gate in PyTorch's order.
      bias: those that are `bias_ih`, to which PyTorch adds `bias_hh`.
      second_bias: the one that is `bias_hh`; of a GRU its last gate, the only one that is not added; often none.
      axes: of the weights.
    """

    kind: str
    inputs: tuple[str, ...]
    state: tuple[str, ...]
    bias: tuple[str, ...]
    second_bias: str = ""
    axes: str = "o i -> i o"


class Adapter(ABC):
    """A model of another library. Its arrays are copied: the caller's model keeps its own.

    Attributes:
      library: its name.
      channels_last: whether its convolutions keep channels on the last axis.
      attention: how its multi-head attention is laid out, if it has one.
      cells: its recurrent cells; one is recognised by its variables.
      hint: what its author should know where a call fails.
    """

    library: ClassVar[str]
    channels_last: ClassVar[bool] = True
    attention: ClassVar[Attention | None] = None
    cells: ClassVar[tuple[Cell, ...]] = ()
    hint: ClassVar[str] = ""

    @abstractmethod
    def variables(self) -> dict[str, nnx.Variable]:
        """New variables by dotted path, as a user of the library would write it."""

    @abstractmethod
    def bind(self, model: "Adapted") -> Any:
        """What `call_ours` gets: the model as its library calls it, with the variables of `model`."""

    def finish(self, model: "Adapted", target: Any) -> None:  # noqa: B027 - most have nothing to do
        """Keeps in `model` what a call has changed in `target`, which `bind` returned."""

    @abstractmethod
    def layout(self, place: Place) -> Layout | None:
        """PyTorch's name and layout of a variable; None where PyTorch has nothing like it."""

    def cell(self, path: str, variables: Container[str]) -> Cell | None:
        """What kind of recurrent cell the module at a path is, by the variables below it."""
        below = f"{path}." if path else ""
        fitting = [
            cell for cell in self.cells if all(below + name in variables for name in cell.inputs + cell.state)
        ]
        with_all = (cell for cell in fitting if cell.second_bias and below + cell.second_bias in variables)
        return next(with_all, next(iter(fitting), None))

    def recording(self, recorder: Recorder) -> AbstractContextManager[None]:
        """Passes the calls of all modules to `recorder` while it is entered."""
        return nullcontext()

    def modules(self, model: "Adapted") -> list[str]:
        """The dotted paths of all modules that are known before a call."""
        return [".".join(map(str, path)) for path, _ in nnx.iter_modules(model)]

    def is_standard(self, path: str) -> bool:
        """Whether the module at a path is a layer of the library; may need a recorded call."""
        return False

    def source(self, path: str) -> Any:
        """The class or function in which the module at a path is written; None where it is not known."""
        return None

    def names_in_torch(self, name: str) -> Iterable[str]:
        """What PyTorch may call a module of this name, likeliest first; "" where it has no module in between."""
        return (name,)


class Branch(nnx.Module):
    """Variables and branches by name; those of a list have numbers as names."""

    def __getitem__(self, index: int) -> Any:
        return getattr(self, str(index))


class Adapted(Branch):
    """A model of another library as an `nnx.Module`.

    Attributes:
      _adapter: what knows the library.
      _inference: True after `eval()`, False after `train()`, and None before.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._inference: bool | None = None
        for path, variable in adapter.variables().items():
            *branches, name = path.split(".")
            node: Branch = self
            for branch in branches:
                if not hasattr(node, branch):
                    setattr(node, branch, Branch())
                node = getattr(node, branch)
                if not isinstance(node, Branch):
                    raise PairError(_taken(adapter, path))
            if hasattr(node, name):
                raise PairError(_taken(adapter, path))
            setattr(node, name, variable)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return call_bound(lambda model: model(*args, **kwargs), self)

    def eval(self, **attributes: Any) -> None:
        """Evaluation mode, for the libraries whose models have a mode."""
        self._inference = True

    def train(self, **attributes: Any) -> None:
        """Training mode, for the libraries whose models have a mode."""
        self._inference = False


def _taken(adapter: Adapter, path: str) -> str:
    return f"{adapter.library}'s array {path} has the path of another one, or a name that nnx.Module uses: rename it"


def adapter_of(model: Any) -> Adapter | None:
    """The adapter of a model of another library; None for one of nnx."""
    return model._adapter if isinstance(model, Adapted) else None


def call_bound(function: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `function` with a model as `call_ours` gets it: an nnx one as it is, another as its library calls it."""
    if not isinstance(model, Adapted):
        return function(model, *args, **kwargs)
    target = model._adapter.bind(model)
    result = function(target, *args, **kwargs)
    model._adapter.finish(model, target)
    return result


def variable_of(value: Any, kind: type[nnx.Variable]) -> nnx.Variable:
    """An array as a variable of a kind; integers have no counterpart in a table, and are plain variables."""
    array = jnp.asarray(value)
    return kind(array) if jnp.issubdtype(array.dtype, jnp.inexact) else nnx.Variable(array)


def arrays_at(model: nnx.Module, paths: Iterable[str]) -> list[jax.Array]:
    """The arrays at dotted paths."""
    found = []
    for path in paths:
        node: Any = model
        for part in path.split("."):
            node = getattr(node, part)
        found.append(node.get_value())
    return found


def store_changes(model: nnx.Module, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Keeps the state that a call has changed; an unchanged one may belong to an outer trace."""
    for path, value in after.items():
        if path in before and value is not before[path]:
            node: Any = model
            for part in path.split("."):
                node = getattr(node, part)
            node.set_value(value)


def with_signature(function: Callable, of: Callable, *, skip: int = 0) -> Callable:
    """`function` with the signature of another one without its first `skip` parameters; inputs are named by it."""
    try:
        signature = inspect.signature(of)
    except (TypeError, ValueError):
        return function
    parameters = list(signature.parameters.values())[skip:]
    setattr(function, "__signature__", signature.replace(parameters=parameters))  # noqa: B010 - unknown to type checkers
    return function


def paths_of(tree: Any) -> list[tuple[str, Any]]:
    """(dotted path, leaf) of a pytree: `layers[0].weight` is "layers.0.weight"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(dotted(path), leaf) for path, leaf in leaves]


def dotted(path: Iterable[Any]) -> str:
    """A key path of JAX, joined by dots."""
    parts = []
    for key in path:
        for attribute in ("name", "key", "idx"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return ".".join(parts)
