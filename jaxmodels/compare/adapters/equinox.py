"""Equinox modules, with or without state."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import wraps
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from jaxmodels.compare.adapters.layouts import conv_axes
from jaxmodels.compare.adapters.protocol import (
    Adapted,
    Adapter,
    Attention,
    Cell,
    Layout,
    Place,
    arrays_at,
    dotted,
    paths_of,
    store_changes,
    variable_of,
)
from jaxmodels.compare.adapters.recorder import Recorder
from jaxmodels.compare.stacks import layer_path


STANDARD = (
    eqx.nn.Linear,
    eqx.nn.Conv,
    eqx.nn.ConvTranspose,
    eqx.nn.Embedding,
    eqx.nn.LayerNorm,
    eqx.nn.RMSNorm,
    eqx.nn.GroupNorm,
    eqx.nn.BatchNorm,
)
# Fields of a BatchNorm that hold its statistics, and those that say how many batches it has seen.
STATISTICS = ("ema_state_index", "batch_state_index")
COUNTERS = ("ema_first_time_index", "batch_counter")


class Stateful:
    """An Equinox module and its state. Called like a module without state, it returns the output alone.

    Attributes:
      module, state: as the library has them.
      after: the state that the last call returned.
    """

    def __init__(self, module: Any, state: Any) -> None:
        self.module, self.state, self.after = module, state, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output, self.after = self.module(*args, self.state, **kwargs)
        return output


class Equinox(Adapter):
    """An Equinox module, as the JAX side of a pair.

    Modules take one example. So most pairs need `call_ours=lambda model, inputs: jax.vmap(model)(inputs["x"])`, where
    `model` is the Equinox module itself. Of a module with state, it is called without the state and returns none; it
    has the attributes `module` and `state`. In training mode, dropout layers drop nothing.

    Args:
      module: the module; `layers[0].weight` has the path "layers.0.weight".
      state: the state of `eqx.nn.make_with_state`, if it has one.
    """

    library = "Equinox"
    channels_last = False
    attention = Attention(
        ("query_proj", "key_proj", "value_proj", "output_proj"),
        "weight",
        "bias",
        "... -> ...",
        "... -> ...",
        "... -> ...",
    )
    cells = (
        Cell("LSTM", ("weight_ih",), ("weight_hh",), ("bias",), axes="... -> ..."),
        Cell("GRU", ("weight_ih",), ("weight_hh",), ("bias",), "bias_n", axes="... -> ..."),
    )
    hint = (
        "an Equinox module takes one example: give call_ours, such as "
        "lambda model, inputs: jax.vmap(model)(inputs['x'])"
    )

    def __init__(self, module: eqx.Module, state: eqx.nn.State | None = None) -> None:
        arrays, self.static = eqx.partition(module, eqx.is_array)
        self.structure = jax.tree.structure(arrays)
        self.arrays = dict(paths_of(arrays))
        state_leaves, self.state_structure = jax.tree.flatten(state)
        self.state = dict(zip(_state_paths(module, state, self.state_structure), state_leaves, strict=True))
        self.kinds = {path: type(layer) for path, layer in _modules(module)}
        self._watched: dict[int, str] | None = None
        self._calls_of_layers: Counter[str] = Counter()
        self._alive: list[Any] = []  # an id belongs to an object only as long as it lives

    def variables(self) -> dict[str, nnx.Variable]:
        found = {path: variable_of(leaf, nnx.Param) for path, leaf in self.arrays.items()}
        for path, leaf in self.state.items():
            field = path.split(".")[-2:]
            # The statistics will be PyTorch's, so that they are not those of a first batch, and have no bias.
            value = jnp.zeros_like(leaf) if field[-1] in COUNTERS else leaf
            found[path] = variable_of(value, nnx.BatchStat if field[0] in STATISTICS else nnx.Variable)
        return found

    def bind(self, model: Adapted) -> Any:
        arrays = jax.tree.unflatten(self.structure, arrays_at(model, self.arrays))
        module = eqx.combine(arrays, self.static)
        if model._inference is not None:
            module = eqx.nn.inference_mode(module, value=model._inference)
        if model._inference is False:
            module = _without_dropout(module)
        if self._watched is not None:
            self._alive.append(module)
            for path, layer in _modules(module):
                self._watched.setdefault(id(layer), path)
                # Transformations take modules apart and put them together again, with the same arrays.
                for leaf in jax.tree.leaves(eqx.filter(layer, eqx.is_array))[:1]:
                    self._watched.setdefault(_key(layer, leaf), path)
        if not self.state:
            return module
        state = jax.tree.unflatten(self.state_structure, arrays_at(model, self.state))
        return Stateful(module, state)

    def finish(self, model: Adapted, target: Any) -> None:
        if not isinstance(target, Stateful) or target.after is None:
            return
        before = dict(zip(self.state, arrays_at(model, self.state), strict=True))
        after = dict(zip(self.state, jax.tree.leaves(target.after), strict=True))
        # What still has a batch is no state of all examples.
        shared = {path: value for path, value in after.items() if not hasattr(value, "batch_dim")}
        store_changes(model, before, shared)

    @contextmanager
    def recording(self, recorder: Recorder) -> Generator[None]:
        self._watched = watched = {}
        originals: dict[type, Any] = {}

        def path_of(layer: Any) -> str | None:
            if id(layer) in watched:
                return watched[id(layer)]
            leaves = jax.tree.leaves(eqx.filter(layer, eqx.is_array))
            found = watched.get(_key(layer, leaves[0])) if leaves else None
            return found or self._layer_of_stack(layer, leaves)

        for kind in {base for layer in self.kinds.values() for base in layer.__mro__}:
            if "__call__" in vars(kind):
                originals[kind] = vars(kind)["__call__"]
                setattr(kind, "__call__", _recorded(originals[kind], recorder, path_of))  # noqa: B010
        try:
            yield
        finally:
            for kind, original in originals.items():
                setattr(kind, "__call__", original)  # noqa: B010
            self._watched, self._alive, self._calls_of_layers = None, [], Counter()

    def _layer_of_stack(self, layer: Any, leaves: list[Any]) -> str | None:
        """The path of a layer that a scan has cut out of stacked weights, found by its values."""
        if not leaves or any(isinstance(leaf, Tracer) for leaf in leaves):
            return None
        for module in self._alive:
            for path, stack in _modules(module):
                stacks = (
                    jax.tree.leaves(eqx.filter(stack, eqx.is_array)) if type(stack) is type(layer) else []
                )
                if [one.shape[1:] for one in stacks] == [leaf.shape for leaf in leaves]:
                    found = [
                        layer_path(path, i)
                        for i in range(len(stacks[0]))
                        if all(np.array_equal(one[i], leaf) for one, leaf in zip(stacks, leaves, strict=True))
                    ]
                    if found:  # layers with equal weights, such as fresh norms, run one after the other
                        first = min(found, key=self._calls_of_layers.__getitem__)
                        self._calls_of_layers[first] += 1
                        return first
        return None

    def modules(self, model: Adapted) -> list[str]:
        return list(self.kinds) + [path.rpartition(".")[0] for path in self.state]

    def is_standard(self, path: str) -> bool:
        return issubclass(self.kinds.get(path, object), STANDARD)

    def source(self, path: str) -> Any:
        return self.kinds.get(path)

    def names_in_torch(self, name: str) -> Iterable[str]:
        """A sequential's layers lie in a list here, and directly below it there."""
        if name in STATISTICS:
            return ("",)
        return (name, "") if name == "layers" else (name,)

    def layout(self, place: Place) -> Layout | None:
        kind = self.kinds.get(place.layer, object)
        rank = len(place.shape)
        if place.layer.rpartition(".")[2] in STATISTICS:
            return Layout(("running_mean", "running_var")[int(place.name)])
        if issubclass(kind, eqx.nn.ConvTranspose) and place.name == "weight":
            # Equinox's kernel runs the other way, and has the groups in its outputs.
            groups = getattr(place.twin, "groups", 1)
            theirs, ours, sizes = (
                ("i o", "o i", ()) if groups == 1 else ("(g i) o", "(g o) i", (("g", groups),))
            )
            axes = conv_axes(theirs, rank, ours, channels_first=True)
            return Layout("weight", axes, flip=2 - rank, sizes=sizes)
        if issubclass(kind, eqx.nn.Conv | eqx.nn.ConvTranspose) and place.name == "bias":
            axes = " ".join(f"a{i}" for i in range(rank))
            return Layout("bias", f"({axes}) -> {axes}")
        return Layout(place.name)


def _recorded(original: Any, recorder: Recorder, path_of: Callable[[Any], str | None]) -> Callable:
    """The call of a class."""

    @wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        method = original.__get__(self, type(self))
        path = path_of(self)
        return method(*args, **kwargs) if path is None else recorder.run(path, method, args, kwargs)

    return call


def _without_dropout(module: Any) -> Any:
    def is_dropout(node: Any) -> bool:
        return isinstance(node, eqx.nn.Dropout)

    def off(node: Any) -> Any:
        return eqx.nn.inference_mode(node) if is_dropout(node) else node

    return jax.tree.map(off, module, is_leaf=is_dropout)


def _key(layer: Any, leaf: Any) -> int:
    return hash((type(layer), id(leaf)))


def _modules(module: Any) -> list[tuple[str, Any]]:
    """(dotted path, module) of a module and of all below it."""
    found: list[tuple[str, Any]] = [("", module)]

    def is_below(node: Any) -> bool:
        return isinstance(node, eqx.Module) and node is not outer

    for outer_path, outer in found:
        leaves, _ = jax.tree_util.tree_flatten_with_path(outer, is_leaf=is_below)
        for path, leaf in leaves:
            if is_below(leaf):
                found.append((f"{outer_path}.{dotted(path)}".strip("."), leaf))
    return found


def _state_paths(module: Any, state: Any, structure: Any) -> list[str]:
    """The path of every array of the state: that of the field which refers to it."""
    if state is None:
        return []
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    paths = [f"state.{i}" for i in range(structure.num_leaves)]
    for path, layer in _modules(module):
        if isinstance(layer, eqx.nn.StateIndex):
            for inner, number in jax.tree_util.tree_flatten_with_path(numbered.get(layer))[0]:
                paths[number] = ".".join(filter(None, (path, dotted(inner) if inner else "")))
    return paths
