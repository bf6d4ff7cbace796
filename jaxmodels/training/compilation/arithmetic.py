"""The products of matrices in a traced function: their FLOP, and the types they are computed in."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend import core
from jax.interpreters import partial_eval


class Product(NamedTuple):
    """One matrix product or convolution of a traced function.

    Attributes:
      dtype: the wider type of its two operands.
      shapes: of both operands and the result.
      flop: of all times it is computed together: two for each multiplication that is added.
    """

    dtype: str
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    flop: int


def products(jaxpr: core.ClosedJaxpr) -> list[Product]:
    """All products that the results of the function need.

    A loop without a fixed number of steps counts once, and of several branches the one with the most FLOP. A Pallas
    kernel counts every step of its grid, also those that it skips.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return list(_products(needed, 1))


def flop(jaxpr: core.ClosedJaxpr) -> int:
    """FLOP of all products of a traced function; what is no product is not counted."""
    return sum(product.flop for product in products(jaxpr))


def _products(jaxpr: Any, times: int) -> Iterator[Product]:
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            yield _product(equation, times)
        elif name == "scan":
            yield from _products(parameters["jaxpr"].jaxpr, times * parameters["length"])
        elif name == "cond":
            branches = [list(_products(branch.jaxpr, times)) for branch in parameters["branches"]]
            yield from max(branches, key=lambda branch: sum(product.flop for product in branch))
        else:
            steps = math.prod(parameters["grid_mapping"].grid) if name == "pallas_call" else 1
            for inner in _jaxprs(parameters):
                yield from _products(inner, times * steps)


def _jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    """Functions that an equation calls, not those for its derivative."""
    for name, value in parameters.items():
        if name not in ("fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_fun"):
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield inner


def _product(equation: Any, times: int) -> Product:
    left, right = (variable.aval for variable in equation.invars)
    result = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        terms = math.prod(left.shape[axis] for axis in contracted)
    else:
        outputs = equation.params["dimension_numbers"].rhs_spec[0]
        terms = math.prod(right.shape) // right.shape[outputs]
    wider = max(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize)
    shapes = left.shape, right.shape, result.shape
    return Product(str(wider), shapes, 2 * times * math.prod(result.shape) * terms)
