"""Whether a JAX function computes a part of a float64 run in float32 or in less. Needs no PyTorch."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr


# Operations that round nothing: they place numbers that are there, or constants such as those of a mask.
EXACT_IN_JAX = {"broadcast_in_dim", "copy", "iota", "reshape", "select_n", "squeeze", "transpose"}


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
