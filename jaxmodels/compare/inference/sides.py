"""Both models with random weights, every call of their modules, and which recorded arrays are the same."""

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxmodels.compare.adapters import as_nnx, call_bound
from jaxmodels.compare.alignment import aligned
from jaxmodels.compare.calls import PairError, failures_explained, layer_by_layer
from jaxmodels.compare.flax_calls import flax_events
from jaxmodels.compare.layers import Event
from jaxmodels.compare.noise import is_inexact, relative_error
from jaxmodels.compare.outputs import as_array, named_leaves
from jaxmodels.compare.preparation import as_tensors, cast, is_below_any, with_plain_weights
from jaxmodels.compare.torch_calls import torch_events
from jaxmodels.convert.torch_io import to_torch


# Two arrays that differ by less are the same for the search: a port with a small mistake is still recognised.
ALIKE = 1e-2
# The whole-model check at the end: both sides in float64, a part of either perhaps in float32 inside.
PROVEN = 1e-5

GRUS = (torch.nn.GRU, torch.nn.GRUCell)

Inputs = Mapping[str, Any]
Arrays = dict[str, np.ndarray]


class Run(NamedTuple):
    """What one side returned, and the calls of its modules in order of time."""

    outputs: dict[str, np.ndarray]
    events: list[Event]


class TorchSide:
    """A copy of the PyTorch model in float64 and in evaluation mode, whose weights are random.

    `counterparts` is how many variables the JAX model has; what `only_theirs` names is left as it is.

    Attributes:
      groups: path of a module -> the names and shapes of its own parameters and statistics.
      tensors: all parameters, under each of their names, and buffers; those that are no statistics keep their values.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: Inputs,
        call: Callable[..., Any],
        *,
        counterparts: int,
        only_theirs: tuple[str, ...] = (),
    ) -> None:
        with failures_explained("copying the PyTorch model", "pass one that copy.deepcopy can copy"):
            self.model = copy.deepcopy(model).eval().double()
        # A weight that PyTorch computes (weight norm) is one variable where JAX has no more of them.
        learned = [name for name, _ in self.model.named_parameters() if not is_below_any(name, only_theirs)]
        if len(learned) > counterparts:
            with_plain_weights(self.model, ())
        self.inputs, self.call = cast(inputs, "float64"), call
        self.modules = dict(self.model.named_modules())
        self.groups: dict[str, dict[str, tuple[int, ...]]] = {}
        learned = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        statistics = {name for name, _ in self.model.named_buffers() if _is_statistic(self.modules, name)}
        self.tensors = dict(self.model.named_parameters(remove_duplicate=False)) | dict(
            self.model.named_buffers()
        )
        for name in self.tensors:
            if name in learned | statistics and not is_below_any(name, only_theirs):
                path, _, own = name.rpartition(".")
                self.groups.setdefault(path, {})[own] = tuple(self.tensors[name].shape)

    def shape_of(self, key: str) -> tuple[int, ...]:
        path, _, own = key.rpartition(".")
        return self.groups[path][own]

    def randomise(self, seed: int) -> Arrays:
        """Gives all parameters and statistics other values, and returns them by key."""
        generator = np.random.default_rng(seed)
        values: Arrays = {}
        drawn: dict[int, np.ndarray] = {}  # a tied parameter has one value under all of its names
        for path, own in self.groups.items():
            for name, shape in own.items():
                key = f"{path}.{name}".lstrip(".")
                fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 0
                tensor = self.tensors[key]
                values[key] = drawn.setdefault(id(tensor), random_values(generator, shape, fan_in))
                if isinstance(self.modules[path], GRUS) and name.startswith("bias_hh"):
                    values[key][len(values[key]) * 2 // 3 :] = 0  # nnx.GRUCell lacks the bias of this gate
                with torch.no_grad():
                    tensor.copy_(to_torch(values[key]))
        return values

    def aliases(self, key: str) -> set[str]:
        """All names of a parameter that is tied."""
        return {name for name, tensor in self.tensors.items() if tensor is self.tensors[key]}

    def run(self) -> Run:
        """Runs the model and records every call."""
        way_out = "its inputs are those given, passed by call_theirs"
        with torch.no_grad(), layer_by_layer(), failures_explained("the PyTorch model", way_out):
            result, events = torch_events(self.model, lambda: self.call(self.model, as_tensors(self.inputs)))
            return Run({name: as_array(leaf) for name, leaf in named_leaves(result).items()}, events)

    def outputs(self) -> Arrays:
        """Runs the model and records no call."""
        with torch.no_grad():
            result = self.call(self.model, as_tensors(self.inputs))
        return {name: as_array(leaf) for name, leaf in named_leaves(result).items()}

    @contextmanager
    def exchanged(self, pairs: Sequence[tuple[str, str]]) -> Generator[None]:
        """The values of each two parameters are exchanged while it is entered."""

        def exchange() -> None:
            with torch.no_grad():
                for a, b in pairs:
                    kept = self.tensors[a].clone()
                    self.tensors[a].copy_(self.tensors[b])
                    self.tensors[b].copy_(kept)

        exchange()
        try:
            yield
        finally:
            exchange()

    def without_effect(self, share: float) -> set[str]:
        """The parameters on which outputs depend by less than `share` of what they do on the most important one."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        generator = np.random.default_rng(0)
        with torch.enable_grad():
            leaves = named_leaves(self.call(self.model, as_tensors(self.inputs))).values()
            total = torch.zeros(())
            for leaf in leaves:
                if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                    total = total + (leaf * to_torch(generator.normal(size=tuple(leaf.shape)))).sum()
            gradients = [None] * len(parameters)
            if total.requires_grad:
                gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        sizes = [0.0 if g is None else float(g.abs().max()) if g.numel() else 0.0 for g in gradients]
        least = share * max(sizes, default=0.0)
        return {name for name, size in zip(parameters, sizes, strict=True) if not size > least}


class FlaxSide:
    """A copy of the JAX model in float64 and in evaluation mode.

    Attributes:
      modules: path -> module.
      variables: path -> variable, of what is learned or a statistic.
      groups: path of a module -> the names and shapes of its own ones.
    """

    def __init__(
        self, ours: Any, inputs: Inputs, call: Callable[..., Any], only_ours: tuple[str, ...] = ()
    ) -> None:
        model = as_nnx(ours)
        if not isinstance(model, nnx.Module):
            raise PairError(f"ours must be a JAX model as a Pair takes it; got a {type(ours).__name__}")
        model = nnx.view(
            nnx.clone(model), deterministic=True, use_running_average=True, raise_if_not_found=False
        )
        model.eval()
        self.model, self.call = model, partial(call_bound, call)
        self.inputs = {name: jnp.asarray(value) for name, value in inputs.items()}
        self.modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
        self.variables: dict[str, nnx.Variable] = {}
        self.groups: dict[str, dict[str, tuple[int, ...]]] = {}
        for path, node in in_order(model):
            if not isinstance(node, nnx.Variable) or isinstance(node, nnx.RngState):
                continue
            value = node.get_value()
            if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.inexact):
                continue
            key = ".".join(map(str, path))
            if isinstance(node, nnx.Param | nnx.BatchStat) and not is_below_any(key, only_ours):
                self.variables[key] = node
                module, _, own = key.rpartition(".")
                self.groups.setdefault(module, {})[own] = tuple(value.shape)

    def shape_of(self, path: str) -> tuple[int, ...]:
        return tuple(self.variables[path].get_value().shape)

    def randomise(self, seed: int) -> Arrays:
        """Gives all variables other values, and returns them by path."""
        generator = np.random.default_rng(seed)
        values = {}
        for path in self.variables:
            shape = self.shape_of(path)
            fan_in = int(np.prod(shape[:-1])) if len(shape) > 1 else 0
            values[path] = random_values(generator, shape, fan_in)
        self.set(values)
        return values

    def set(self, values: Mapping[str, np.ndarray]) -> None:
        for path, value in values.items():
            self.variables[path].set_value(jnp.asarray(value))

    def run(self) -> Run:
        """Runs the model operation by operation and records every call; none where that is impossible."""
        way_out = "its inputs are what to_ours returns, passed by call_ours"
        try:
            # A copy: a recording that fails leaves its records behind.
            result, events = flax_events(nnx.clone(self.model), lambda model: self.call(model, self.inputs))
            recorded = list(events.values())
        except Exception:  # inside of vmap or jax.checkpoint no call can be recorded
            with failures_explained("the JAX model", way_out):
                result, recorded = self.call(self.model, self.inputs), []
        return Run({name: as_array(leaf) for name, leaf in named_leaves(result).items()}, recorded)


def in_order(model: nnx.Module) -> list[tuple[tuple[Any, ...], Any]]:
    """All nodes with their paths, those of a module in the order in which its attributes were set."""
    found: list[tuple[tuple[Any, ...], Any]] = []
    rank: dict[tuple[Any, ...], tuple[int, ...]] = {(): ()}
    nodes = sorted(((path, node) for path, node in nnx.iter_graph(model)), key=lambda one: len(one[0]))
    by_path = dict(nodes)
    for path, node in nodes:
        if path:
            parent = by_path.get(path[:-1])
            names = [str(name) for name in vars(parent)] if hasattr(parent, "__dict__") else []
            own = names.index(str(path[-1])) if str(path[-1]) in names else _number(path[-1], len(names))
            rank[path] = (*rank.get(path[:-1], ()), own)
        found.append((path, node))
    return sorted(found, key=lambda one: rank[one[0]])


def _number(name: Any, otherwise: int) -> int:
    return int(name) if str(name).isdigit() else otherwise


def random_values(generator: np.random.Generator, shape: Sequence[int], fan_in: int) -> np.ndarray:
    """Values that keep activations near one; positive for vectors, which may be variances or scales."""
    if fan_in:
        return generator.normal(size=shape) / fan_in**0.5
    return generator.uniform(0.3, 1.3, size=shape)


def distance(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The relative error between two arrays, in whatever order of axes brings them closest."""
    pairs = [pair for first in (False, True) for pair in aligned(theirs, ours, channels_first=first)]
    return min((relative_error(b, a) for a, b in pairs), default=float("inf"))


class Match(NamedTuple):
    """An array that was found again; `event` is None for an output of the model."""

    event: Event | None
    error: float


class Index:
    """Finds which of many recorded arrays equal a given one, whatever the order of their axes."""

    def __init__(self, run: Run) -> None:
        self.arrays: list[tuple[Event | None, np.ndarray]] = [(None, array) for array in run.outputs.values()]
        self.arrays += [(event, array) for event in run.events for array in event.arrays]
        marks = [_fingerprint(array) for _, array in self.arrays]
        self.marks = np.array(marks).reshape(len(marks), 5)

    def matches(self, array: np.ndarray) -> list[Match]:
        """The events that hold such an array."""
        mark = _fingerprint(array)
        if np.isnan(mark[0]):
            return []
        scale = max(abs(mark[2]), abs(mark[3]), 1e-30)
        near = np.abs(self.marks - mark)[:, :4].max(axis=1, initial=0.0) <= ALIKE * scale
        near &= self.marks[:, 4] == mark[4]
        found = [self.arrays[i] for i in np.flatnonzero(near)]
        matches = [Match(event, distance(array, other)) for event, other in found]
        return [match for match in matches if match.error <= ALIKE]


def _fingerprint(array: np.ndarray) -> tuple[float, ...]:
    """Numbers that no order of axes and no repetition changes; NaN for an array that says nothing."""
    if array.size < 2 or array.dtype == bool or array.dtype.kind not in "iufc":
        return (np.nan,) * 5
    values = np.abs(array) if np.iscomplexobj(array) else array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low == high or not np.isfinite(high - low):
        return (np.nan,) * 5
    return float(values.mean()), float(np.sqrt(np.square(values).mean())), low, high, float(is_inexact(array))


def _is_statistic(modules: Mapping[str, torch.nn.Module], name: str) -> bool:
    path, _, own = name.rpartition(".")
    kinds = torch.nn.modules.batchnorm._NormBase
    return own in ("running_mean", "running_var") and isinstance(modules[path], kinds)
