"""A model as a function of its parameters: a flat dict of arrays becomes the model, and back."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxmodels.nn import Implementation


class FunctionalModel:
    """The structure of one model, for training and for evaluation.

    The trainer holds parameters as {dotted name: array}: cheap to pass to a compiled function, easy to shard,
    save and name. Inside a compiled function they become the model again.

    Args:
      make: builds the model; it is traced, no array is allocated.
      attention: how the model's attention is computed, see `jaxmodels.nn.attend`.
    """

    def __init__(self, make: Callable[[], nnx.Module], *, attention: Implementation = "auto") -> None:
        model = nnx.view(nnx.eval_shape(make), attention=attention)
        self.graphdef, variables = nnx.split(model)
        views = ({"deterministic": False}, {"deterministic": False, "remat": True})
        self.training_graphdef, self.remat_graphdef = (
            nnx.split(nnx.view(model, **view))[0] for view in views
        )
        self.variables = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(variables)}
        self.parameters = [name for name, (_, v) in self.variables.items() if isinstance(v, nnx.Param)]
        constants = [name for name in self.variables if name not in set(self.parameters)]
        # Buffers do not depend on the seed: computed once, here.
        self.constants: dict[str, np.ndarray] = {}
        if constants:
            self.constants = jax.tree.map(np.asarray, jax.jit(lambda: _pick(make(), constants))())

    def split(self, model: nnx.Module) -> dict[str, Array]:
        """The parameters of a model of this structure."""
        return _pick(model, self.parameters)

    def merge(
        self, parameters: Mapping[str, Array], *, training: bool = False, remat: bool = False
    ) -> nnx.Module:
        """The model with these parameters.

        Args:
          parameters: what `split` returns.
          training: with dropout.
          remat: with dropout, and layers that compute activations again in the backward pass.
        """
        values = {**self.constants, **parameters}
        state = nnx.from_flat_state(
            [(path, variable.replace(values[name])) for name, (path, variable) in self.variables.items()]
        )
        graphdef = self.training_graphdef if training else self.graphdef
        return nnx.merge(self.remat_graphdef if remat else graphdef, state)


def _pick(model: nnx.Module, names: list[str]) -> dict[str, Array]:
    arrays = {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(model))}
    return {name: arrays[name] for name in names}
