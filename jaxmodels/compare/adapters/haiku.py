"""Haiku's transformed functions with their parameters and state."""

import inspect
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import haiku as hk
import jax
from flax import nnx

from jaxmodels.compare.adapters.layouts import conv_axes, dense_axes, is_conv, is_transposed, merged_bias
from jaxmodels.compare.adapters.protocol import (
    Adapted,
    Adapter,
    Attention,
    Cell,
    Layout,
    Place,
    arrays_at,
    store_changes,
    variable_of,
    with_signature,
)
from jaxmodels.compare.adapters.recorder import Recorder


NAMES = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias", "embeddings": "weight"}
# The statistics of a BatchNorm lie in two modules of its own.
STATISTICS = {"mean_ema": "running_mean", "var_ema": "running_var"}
STANDARD = (
    hk.Linear,
    hk.ConvND,
    hk.ConvNDTranspose,
    hk.Embed,
    hk.LayerNorm,
    hk.RMSNorm,
    hk.GroupNorm,
    hk.InstanceNorm,
    hk.BatchNorm,
)


class Haiku(Adapter):
    """Haiku's transformed functions, parameters and state, as the JAX side of a pair.

    Args:
      transformed: what `hk.transform` or `hk.transform_with_state` returns.
      params: what `transformed.init` returns. `params["mlp/~/linear_0"]["w"]` has the path "mlp.linear_0.w".
      state: the second thing that it returns, of `hk.transform_with_state`.
      rng: key of every call, for models that draw random numbers.
      options: keyword arguments of every call, such as `is_training=False`.
    """

    library = "Haiku"
    attention = Attention(
        ("query", "key", "value", "linear"), "w", "b", "o i -> i o", "... -> ...", "o i -> i o"
    )
    cells = (Cell("RNN", ("linear.w",), ("linear_1.w",), ("linear.b",), "linear_1.b"),)

    def __init__(
        self,
        transformed: hk.Transformed | hk.TransformedWithState,
        params: hk.Params,
        state: hk.State | None = None,
        *,
        rng: jax.Array | None = None,
        **options: Any,
    ) -> None:
        self.has_state = isinstance(transformed, hk.TransformedWithState)
        if self.has_state == (state is None):
            raise ValueError(
                "state must be given for hk.transform_with_state, and only for it; got "
                f"{type(transformed).__name__} {'without' if state is None else 'with'} state"
            )
        self.apply, self.rng, self.options = transformed.apply, rng, options
        self.params, self.state = _flat(params), _flat(state or {})
        self.kinds: dict[str, type] = {}

    def variables(self) -> dict[str, nnx.Variable]:
        found = {_shown(*where): variable_of(value, nnx.Param) for where, value in self.params.items()}
        for (module, name), value in self.state.items():
            kind = nnx.BatchStat if name == "average" else nnx.Variable
            path = _shown(module, name)
            if path in found:
                raise ValueError(f"params and state both have the array {path}: rename one")
            found[path] = variable_of(value, kind)
        if len(found) < len(self.params) + len(self.state):
            raise ValueError("modules must have unlike paths without '~'; give one of them another name")
        return found | ({} if self.rng is None else {"rng": nnx.RngKey(self.rng, tag="rng")})

    def bind(self, model: Adapted) -> Any:
        def apply(*args: Any, **kwargs: Any) -> Any:
            params = _nested(self.params, arrays_at(model, [_shown(*where) for where in self.params]))
            states = arrays_at(model, [_shown(*where) for where in self.state])
            leading: list[Any] = [params, _nested(self.state, states)] if self.has_state else [params]
            if self._takes_rng():
                leading += [None] if self.rng is None else arrays_at(model, ["rng"])
            result = self.apply(*leading, *args, **{**self.options, **kwargs})
            if not self.has_state:
                return result
            output, state = result
            before = dict(zip([_shown(*where) for where in self.state], states, strict=True))
            store_changes(model, before, {_shown(*where): value for where, value in _flat(state).items()})
            return output

        return with_signature(apply, self.apply, skip=1 + self.has_state + self._takes_rng())

    def _takes_rng(self) -> bool:
        """Whether `apply` has the argument that `hk.without_apply_rng` removes."""
        return list(inspect.signature(self.apply).parameters)[1 + self.has_state : 2 + self.has_state] == [
            "rng"
        ]

    @contextmanager
    def recording(self, recorder: Recorder) -> Generator[None]:
        def intercept(function: Callable, args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
            if context.method_name != "__call__":
                return function(*args, **kwargs)
            path = _module_path(context.module.module_name)
            self.kinds[path] = type(context.module)
            return recorder.run(path, function, args, kwargs)

        with hk.intercept_methods(intercept):
            yield

    def is_standard(self, path: str) -> bool:
        return issubclass(self.kinds.get(path, object), STANDARD)

    def source(self, path: str) -> Any:
        return self.kinds.get(path)

    def names_in_torch(self, name: str) -> Iterable[str]:
        return ("", name) if name in STATISTICS else (name,)

    def layout(self, place: Place) -> Layout | None:
        rank = len(place.shape)
        if place.name == "average":
            return Layout(STATISTICS.get(place.layer.rpartition(".")[2], place.name), _channels(place))
        if place.name == "w" and is_transposed(place.twin):
            # Haiku's kernel runs the other way.
            return Layout("weight", conv_axes("i o", rank, "o i"), flip=rank - 2)
        if place.name == "w" and is_conv(place.twin) and rank > 2:
            return Layout("weight", conv_axes("o i", rank, "i o"))
        if place.name == "w":
            return Layout("weight", dense_axes(place, "weight"))
        if place.name in ("b", "scale", "offset"):
            return Layout(NAMES[place.name], _channels(place))
        return Layout(NAMES.get(place.name, place.name))


def _channels(place: Place) -> str:
    """Channels among axes of one; a LayerNorm may have several axes in PyTorch too."""
    weight = getattr(place.twin, "weight", None)
    return merged_bias(len(place.shape)) if weight is None or weight.shape != place.shape else "... -> ..."


def _flat(tree: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(module, name): value for module, arrays in tree.items() for name, value in arrays.items()}


def _nested(where: Iterable[tuple[str, str]], values: Iterable[Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for (module, name), value in zip(where, values, strict=True):
        nested.setdefault(module, {})[name] = value
    return nested


def _module_path(module: str) -> str:
    """The name of a module as a path, without the methods that made it: "mlp/~/linear_0" is "mlp.linear_0"."""
    return ".".join(part for part in module.split("/") if not part.startswith("~"))


def _shown(module: str, name: str) -> str:
    return f"{_module_path(module)}.{name}".strip(".")
