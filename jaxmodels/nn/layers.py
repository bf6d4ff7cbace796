"""Layers that differ in nothing but their weights, as one loop of the compiled program."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def in_turn(
    layers: Sequence[nnx.Module], call: Callable[[Any, Array], Array], x: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`x` through all layers, one after the other.

    Layers of the same structure become a `jax.lax.scan` over their stacked weights, so that one of them is
    compiled and not all: `benchmarks/LOG.md` has what that saves, and what the copy of the weights costs.
    Weights, names and conversion know nothing of it. Where `nnx.capture` records what every layer returns, and
    where layers differ, they are called one by one.

    Args:
      layers: at least one parameter each, or they are called one by one as well.
      call: applies a layer; its result has the shape and type of its second argument.
      x: what the first layer receives.
    """
    parts = [nnx.split(layer) for layer in layers]
    if len(parts) < 2 or _captured(layers) or len({_structure(*part) for part in parts}) > 1:
        for layer in layers:
            x = call(layer, x)
        return x
    graphdef = parts[0][0]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state for _, state in parts))

    def step(x: Array, state: nnx.State) -> tuple[Array, None]:
        return call(nnx.merge(graphdef, state), x), None

    return jax.lax.scan(step, x, stacked)[0]


def _captured(layers: Sequence[nnx.Module]) -> bool:
    return any(hasattr(module, "__captures__") for layer in layers for _, module in nnx.iter_modules(layer))


def _structure(graphdef: nnx.GraphDef, state: nnx.State) -> tuple:
    leaves, tree = jax.tree.flatten(state)
    return graphdef, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
