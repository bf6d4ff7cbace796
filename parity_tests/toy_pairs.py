"""Pairs of a few layers, written down in one line per side; for the tests of verdicts."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxmodels.compare import Pair, table_from_names
from jaxmodels.compare.preparation import loadable_arrays
from jaxmodels.convert.core import fit, variable_at


CHANNELS_LAST: dict[str, Any] = {
    "to_ours": lambda inputs: {name: np.moveaxis(value, 1, -1) for name, value in inputs.items()}
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def linear(inputs: int, outputs: int, **options: Any) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)


def in_flax(call: Callable, **layers: nnx.Module) -> nnx.Module:
    """A module that holds `layers` and whose call is `call(self, *inputs)`."""

    class Toy(nnx.Module):
        def __init__(self) -> None:
            for name, layer in layers.items():
                setattr(self, name, layer)

        def __call__(self, *inputs: Any) -> Any:
            return call(self, *inputs)

    return Toy()


def in_torch(call: Callable, **layers: torch.nn.Module) -> torch.nn.Module:
    """The same in PyTorch."""

    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, *inputs: Any) -> Any:
            return call(self, *inputs)

    return Toy()


def toy(ours: nnx.Module, theirs: torch.nn.Module, *arrays: np.ndarray, **options: Any) -> Pair:
    """A pair whose inputs are called x, y, …"""
    inputs = options.pop("inputs", dict(zip("xyz", arrays, strict=False)))
    return Pair(
        name="toy", ours=ours, theirs=theirs, table=table_from_names(ours, theirs), inputs=inputs, **options
    )


def one_linear(
    ours: Callable = lambda y: y, theirs: Callable = lambda y: y, *, rows: int = 4, **options: Any
) -> Pair:
    """A linear layer on both sides; what `ours` and `theirs` make of its output is returned."""
    torch.manual_seed(0)
    return toy(
        in_flax(lambda self, x: ours(self.layer(x)), layer=linear(8, 8)),
        in_torch(lambda self, x: theirs(self.layer(x)), layer=torch.nn.Linear(8, 8)),
        normal(rows, 8),
        **options,
    )


def load(pair: Pair) -> nnx.Module:
    """The Flax model with PyTorch's weights, as a port's own loader would fill it."""
    for path, value in fit(pair.ours, pair.table, loadable_arrays(pair.theirs, pair)).items():
        variable_at(pair.ours, path).set_value(jnp.asarray(value))
    return pair.ours
