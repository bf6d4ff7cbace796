"""Outputs of any structure – arrays, tuples, dicts, dataclasses, one inside the other – as named arrays."""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any

import numpy as np
from einops import EinopsError, rearrange

from jaxmodels.compare.calls import PairError
from jaxmodels.compare.noise import is_inexact


def named_leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """The arrays and numbers of nested containers by dotted path; None stands for nothing.

    Raises:
      PairError: something else than arrays and numbers, such as a cache object.
    """
    match tree:
        case None:
            return {}
        case np.ndarray() | Number():
            return {name: tree}
        case _ if _is_a(tree, "torch", "Tensor") or _is_a(tree, "jax", "Array"):
            return {name: tree}
        case _ if _is_a(tree, "flax.nnx", "Variable"):
            return {name: tree.get_value()}
        case Mapping():
            children = {str(key): value for key, value in tree.items()}
        case tuple() if hasattr(tree, "_fields"):
            children = dict(zip(tree._fields, tree, strict=True))
        case tuple() | list():
            children = {str(i): value for i, value in enumerate(tree)}
        case _ if is_dataclass(tree) and not isinstance(tree, type):
            children = {part.name: getattr(tree, part.name) for part in fields(tree)}
        case _:
            raise PairError(
                f"output {name or 0} is of type {type(tree).__name__}; models must return arrays, or tuples, lists, "
                "dicts and dataclasses of arrays: leave it out in call_ours and call_theirs"
            )
    found: dict[str, Any] = {}
    for key, value in children.items():
        found.update(named_leaves(value, f"{name}.{key}" if name else key))
    return found


def floating_leaves(tree: Any) -> list[Any]:
    """The floating-point and complex arrays of an output."""
    return [leaf for leaf in named_leaves(tree).values() if _is_floating(leaf)]


def mean_square(tree: Any) -> Any:
    """The loss of a pair that has none: the sum over all floating-point outputs of the mean of their squares."""
    total: Any = 0.0
    for leaf in floating_leaves(tree):
        part = (leaf.real * leaf.real + leaf.imag * leaf.imag) if _is_complex(leaf) else leaf * leaf
        total = total + part.mean()
    return total


def as_array(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array."""
    if _is_a(leaf, "torch", "Tensor"):
        from jaxmodels.convert.torch_io import to_numpy

        return to_numpy(leaf)
    return np.asarray(leaf)


def matched(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, ours, theirs) of every output, in PyTorch's order.

    Raises:
      PairError: the two models return outputs of different names or numbers.
    """
    if len(ours) == len(theirs) == 1:
        ((name, output),) = theirs.items()
        return [(_shown(name), next(iter(ours.values())), output)]
    if ours.keys() != theirs.keys():
        listed = [", ".join(map(_shown, side)) or "nothing" for side in (theirs, ours)]
        raise PairError(
            f"PyTorch returns {listed[0]}, JAX returns {listed[1]}; they must return the same outputs under the "
            "same names: arrange them in call_ours and call_theirs"
        )
    return [(_shown(name), ours[name], theirs[name]) for name in theirs]


def to_our_axes(theirs: np.ndarray, ours: np.ndarray, axes: str) -> np.ndarray:
    """PyTorch's output in the axes of ours, by the pair's `output_axes`.

    Outputs of another rank than the pattern keep theirs. Without a pattern, channels move to the end where
    only that makes the shapes equal.
    """
    if axes != "... -> ...":
        return rearrange(theirs, axes) if fits_axes(theirs, axes) else theirs
    if theirs.ndim > 2 and theirs.shape != ours.shape:
        last = np.moveaxis(theirs, 1, -1)
        if last.shape == ours.shape:
            return last
    return theirs


def fits_axes(array: np.ndarray, axes: str) -> bool:
    """Whether an einops pattern can be applied to an output."""
    try:
        rearrange(array, axes)
    except (EinopsError, ValueError):
        return False
    return True


def _shown(name: str) -> str:
    return f"output {name or 0}"


def _is_a(leaf: Any, module: str, name: str) -> bool:
    """Whether it is of a class of a framework. It can only be where that framework has been imported."""
    return module in sys.modules and isinstance(leaf, getattr(sys.modules[module], name))


def _is_floating(leaf: Any) -> bool:
    if _is_a(leaf, "torch", "Tensor"):
        return leaf.is_floating_point() or leaf.is_complex()
    return (_is_a(leaf, "jax", "Array") or isinstance(leaf, np.ndarray)) and is_inexact(leaf)


def _is_complex(leaf: Any) -> bool:
    if _is_a(leaf, "torch", "Tensor"):
        return leaf.is_complex()
    return bool(np.issubdtype(leaf.dtype, np.complexfloating))
