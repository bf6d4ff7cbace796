"""Which side of a float64 comparison computes a part of its forward pass in float32 or in less.

Many models do this on purpose: Flax's attention takes its softmax in float32, and so do RMS norms of language models.
What they return has a float64's type and a float32's digits.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from torch.utils._python_dispatch import TorchDispatchMode

from jaxmodels.compare.pair import Pair
from jaxmodels.compare.preparation import Subject, as_jax_arrays, as_tensors


# Operations that round nothing: they place numbers that are there, or constants such as those of a mask.
EXACT_IN_JAX = {"broadcast_in_dim", "copy", "iota", "reshape", "select_n", "squeeze", "transpose"}
EXACT_IN_TORCH = {
    "alias", "arange", "clone", "detach", "empty", "expand", "fill_", "full", "full_like", "masked_fill",
    "masked_fill_", "new_full", "new_zeros", "ones", "ones_like", "permute", "scalar_tensor", "select", "slice", "t",
    "transpose", "tril", "triu", "unsqueeze", "view", "where", "zeros", "zeros_like", "_unsafe_view",
}  # fmt: skip


def coarser_inside(subject: Subject) -> str | None:
    """A sentence that names the side and the operation; None where all that rounds does so in float64."""
    found = [
        f"{side} computes in {kind} (first in {operation})"
        for side, (operation, kind) in (
            ("PyTorch", _in_torch(subject) or ("", "")),
            ("JAX", _in_jax(subject.pair, subject.inputs) or ("", "")),
        )
        if operation
    ]
    if not found:
        return None
    return f"{' and '.join(found)}, so that no more than the digits of float32 can be compared; compare in float32"


def _in_torch(subject: Subject) -> tuple[str, str] | None:
    """The first operation of PyTorch's forward pass with a coarser result, and its type."""
    watch = _Watch()
    with torch.no_grad(), watch:
        subject.pair.call_theirs(subject.pair.theirs, as_tensors(subject.inputs))
    return watch.found


class _Watch(TorchDispatchMode):
    """Sees every operation while it is entered."""

    found: tuple[str, str] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.found is None and name not in EXACT_IN_TORCH and not _from_integers(name, args):
            for value in result if isinstance(result, tuple | list) else (result,):
                if (
                    isinstance(value, torch.Tensor)
                    and value.is_floating_point()
                    and value.dtype != torch.float64
                ):
                    self.found = name, str(value.dtype).removeprefix("torch.")
        return result


def _from_integers(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation only converts integers or booleans."""
    source = args[0] if args else None
    return name == "_to_copy" and isinstance(source, torch.Tensor) and not source.is_floating_point()


def _in_jax(pair: Pair, inputs: Any) -> tuple[str, str] | None:
    """The same of the Flax model."""
    arrays = as_jax_arrays(pair, inputs)
    graphdef, state = nnx.split(pair.ours)

    def run(state: nnx.State, values: list[jax.Array]) -> Any:
        model = nnx.merge(graphdef, state)
        result = pair.call_ours(model, dict(zip(arrays, values, strict=True)))
        return [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]

    return coarser_operation(jax.make_jaxpr(run)(state, list(arrays.values())).jaxpr)


def coarser_operation(jaxpr: Jaxpr) -> tuple[str, str] | None:
    """The first operation of a float64 program with a coarser result, and its type."""
    for equation in _equations(jaxpr):
        name = equation.primitive.name
        floats = [v.aval.dtype for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
        if name in EXACT_IN_JAX or (name == "convert_element_type" and not floats):
            continue
        for variable in equation.outvars:
            kind = getattr(variable.aval, "dtype", jnp.float64)
            if jnp.issubdtype(kind, jnp.floating) and kind != jnp.float64:
                return name, str(kind)
    return None


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations that compute something, inside the calls of others too."""
    for equation in jaxpr.eqns:
        inner = [part for value in equation.params.values() for part in _jaxprs(value)]
        for part in inner:
            yield from _equations(part)
        if not inner:
            yield equation


def _jaxprs(value: Any) -> Iterator[Any]:
    match value:
        case ClosedJaxpr():
            yield value.jaxpr
        case Jaxpr():
            yield value
        case tuple() | list():
            for part in value:
                yield from _jaxprs(part)
