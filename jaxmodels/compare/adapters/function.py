"""A plain function of a pytree of arrays."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxmodels.compare.adapters.protocol import (
    Adapted,
    Adapter,
    Layout,
    Place,
    arrays_at,
    dotted,
    variable_of,
    with_signature,
)


class Function(Adapter):
    """A function whose first argument is a pytree of arrays, as the JAX side of a pair.

    It has no layers: a difference is located in the outputs and in the gradients of its arrays.

    Args:
      function: called as `function(params, *inputs)`; `call_ours` gets it without the first argument.
      params: dicts, lists, tuples and dataclasses of arrays. A weight `params["blocks"][0]["w"]` has the path
        "blocks.0.w"; in a path, "/" counts as a dot.
    """

    library = "function"

    def __init__(self, function: Callable[..., Any], params: Any) -> None:
        self.function = function
        leaves, self.structure = jax.tree_util.tree_flatten_with_path(params)
        self.arrays = {dotted(path).replace("/", ".") or "params": leaf for path, leaf in leaves}
        if len(self.arrays) < len(leaves):
            raise ValueError("params must have arrays with unlike paths; '/' in a key counts as a level")

    def variables(self) -> dict[str, nnx.Variable]:
        return {path: variable_of(leaf, nnx.Param) for path, leaf in self.arrays.items()}

    def bind(self, model: Adapted) -> Any:
        params = jax.tree.unflatten(self.structure, arrays_at(model, self.arrays))
        return with_signature(
            lambda *args, **kwargs: self.function(params, *args, **kwargs), self.function, skip=1
        )

    def source(self, path: str) -> Any:
        return None if path else inspect.unwrap(self.function)

    def layout(self, place: Place) -> Layout:
        return Layout(place.name)
