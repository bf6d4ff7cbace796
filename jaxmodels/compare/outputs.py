"""Outputs of any structure – arrays, tuples, dicts, dataclasses, one inside the other – as named arrays."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any

import numpy as np
from einops import EinopsError, rearrange

from jaxmodels.compare.calls import PairError
from jaxmodels.compare.noise import is_inexact


ANY_AXES = "... -> ..."
# PyTorch's names of the outputs to compare, or these and JAX's.
OutputNames = Mapping[str, str] | tuple[str, ...]


def leaves_of(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, leaf) of nested containers; None stands for nothing."""
    match tree:
        case None:
            return
        case _ if _is_a(tree, "flax.nnx", "Variable"):
            yield name, tree.get_value()
            return
        case _ if is_array(tree):
            yield name, tree
            return
        case Mapping():
            children = {str(key): value for key, value in tree.items()}
        case tuple() if hasattr(tree, "_fields"):
            children = dict(zip(tree._fields, tree, strict=True))
        case tuple() | list():
            children = {str(i): value for i, value in enumerate(tree)}
        case _ if is_dataclass(tree) and not isinstance(tree, type):
            children = {part.name: getattr(tree, part.name) for part in fields(tree)}
        case _:
            yield name, tree
            return
    for key, value in children.items():
        yield from leaves_of(value, f"{name}.{key}" if name else key)


def is_array(leaf: Any) -> bool:
    """Whether it is an array, a tensor or a number; keys of random numbers are none."""
    if _is_a(leaf, "jax", "Array"):
        return "key<" not in str(leaf.dtype)
    return isinstance(leaf, np.ndarray | Number) or _is_a(leaf, "torch", "Tensor")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The arrays and numbers of nested containers by dotted path, without anything else."""
    return {name: leaf for name, leaf in leaves_of(tree) if is_array(leaf)}


def left_out(tree: Any, side: str) -> list[str]:
    """A sentence for every output that is no array, such as a cache object.

    Raises:
      PairError: no other output is one.
    """
    leaves = list(leaves_of(tree))
    others = [(name, type(leaf).__name__) for name, leaf in leaves if not is_array(leaf)]
    if others and len(others) == len(leaves):
        name, kind = others[0]
        raise PairError(
            f"{side}'s {_shown(name)} is of type {kind}; models must return arrays, or tuples, lists, dicts and "
            "dataclasses of arrays: return those that it holds from call_ours and call_theirs"
        )
    return [
        f"{side}'s {_shown(name)} was not compared: it is of type {kind}; if it matters, return its arrays from "
        "call_ours and call_theirs"
        for name, kind in others
    ]


def chosen(tree: Any, names: Mapping[str, str], side: str) -> dict[str, Any]:
    """Some outputs by name.

    Args:
      tree: what a model returns.
      names: the name that the report gives an output -> its dotted path on this side, or that of a container.
      side: who returns it.

    Raises:
      PairError: an output that is not there, or is no array.
    """
    leaves = dict(leaves_of(tree))
    if len(names) == 1 and leaves.keys() == {""}:  # a bare array
        return dict(zip(names, leaves.values(), strict=True))
    found: dict[str, Any] = {}
    for name, path in names.items():
        inside = {key: leaf for key, leaf in leaves.items() if f"{key}.".startswith(f"{path}.")}
        if not inside:
            there = ", ".join(key or "a bare array" for key in leaves) or "nothing"
            raise PairError(
                f"outputs must name what the models return; {side} returns {there}, and no {path!r}: give "
                "outputs={PyTorch's name: JAX's name} where they differ"
            )
        for key, leaf in inside.items():
            if not is_array(leaf):
                raise PairError(
                    f"outputs must name arrays; {side}'s {_shown(key)} is of type {type(leaf).__name__}"
                )
            found[name + key[len(path) :]] = leaf
    return found


def names_by_side(outputs: OutputNames) -> tuple[dict[str, str], dict[str, str]]:
    """The chosen outputs for `chosen`, of JAX and of PyTorch; both are shown under PyTorch's names.

    Raises:
      PairError: not a tuple or a dict of names.
    """
    names = dict(outputs) if isinstance(outputs, Mapping) else outputs
    if not isinstance(names, dict):
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise PairError(
                "outputs must be a tuple of names, or a dict from PyTorch's names to JAX's; got "
                f"outputs={outputs!r}"
            )
        names = dict(zip(names, names, strict=True))
    return names, {name: name for name in names}


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
            "same names: choose some with outputs=, or arrange them in call_ours and call_theirs"
        )
    return [(_shown(name), ours[name], theirs[name]) for name in theirs]


def to_our_axes(theirs: np.ndarray, ours: np.ndarray, axes: str) -> np.ndarray:
    """PyTorch's output in the axes of ours, by the pair's `output_axes`.

    Outputs of another rank than the pattern keep theirs. Without a pattern, channels move to the end where
    only that makes the shapes equal.
    """
    if axes != ANY_AXES:
        return rearrange(theirs, axes) if fits_axes(theirs, axes) else theirs
    if theirs.ndim > 2 and theirs.shape != ours.shape:
        last = np.moveaxis(theirs, 1, -1)
        if last.shape == ours.shape:
            return last
    return theirs


def axes_of(output_axes: str | Mapping[str, str], name: str) -> str:
    """The pattern of an output; a dict has it under the output's name, or that of a container around it."""
    if isinstance(output_axes, str):
        return output_axes
    while name and name not in output_axes:
        name = name.rpartition(".")[0]
    return output_axes.get(name, ANY_AXES)


def check_axes(output_axes: str | Mapping[str, str], outputs: Mapping[str, np.ndarray]) -> None:
    """Refuses patterns that fit no output.

    Args:
      outputs: PyTorch's.

    Raises:
      PairError: one pattern that fits none, or one by name that does not fit all outputs of this name.
    """
    by_name = {} if isinstance(output_axes, str) else output_axes
    for name, axes in by_name.items():
        inside = [value for key, value in outputs.items() if f"{key}.".startswith(f"{name}.")]
        if not inside or not all(fits_axes(value, axes) for value in inside):
            shapes = ", ".join(f"{key or 0} {value.shape}" for key, value in outputs.items())
            raise PairError(
                f"output_axes must give einops patterns for outputs of PyTorch, which are {shapes}; got "
                f"{name!r}: {axes!r}"
            )
    if isinstance(output_axes, str) and not any(fits_axes(value, output_axes) for value in outputs.values()):
        shapes = ", ".join(str(value.shape) for value in outputs.values())
        raise PairError(
            f"output_axes must be an einops pattern for an output of PyTorch, which have the shapes {shapes}; got "
            f"output_axes={output_axes!r}"
        )


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
