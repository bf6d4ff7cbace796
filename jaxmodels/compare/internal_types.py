"""Which side of a float64 comparison computes a part of its forward pass in float32 or in less.

Many models do this on purpose: Flax's attention takes its softmax in float32, and so do RMS norms of language models.
What they return has a float64's type and a float32's digits.
"""

from typing import Any

import jax
from flax import nnx

from jaxmodels.compare.jax_types import coarser_operation
from jaxmodels.compare.noise import coarser_sides
from jaxmodels.compare.preparation import Subject, as_jax_arrays, as_tensors
from jaxmodels.compare.torch_types import coarser_in_torch


def coarser_inside(subject: Subject) -> str | None:
    """A sentence that names the side and the operation; None where all that rounds does so in float64."""
    pair = subject.pair
    in_torch = coarser_in_torch(lambda: pair.call_theirs(pair.theirs, as_tensors(subject.inputs)))
    return coarser_sides(in_torch, _in_jax(subject))


def _in_jax(subject: Subject) -> tuple[str, str] | None:
    arrays = as_jax_arrays(subject.pair, subject.inputs)
    graphdef, state = nnx.split(subject.pair.ours)

    def run(state: nnx.State, values: list[jax.Array]) -> Any:
        model = nnx.merge(graphdef, state)
        result = subject.pair.call_ours(model, dict(zip(arrays, values, strict=True)))
        return [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]

    return coarser_operation(jax.make_jaxpr(run)(state, list(arrays.values())).jaxpr)
