"""PyTorch state_dict <-> Flax model: one to one, both ways, or a ValueError that lists every misfit.

Knows names and layouts (through the tables), not PyTorch.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import DTypeLike

from jaxmodels.convert.files import read_state_dict
from jaxmodels.convert.table import Derived, Entry, Parameter, Tied
from jaxmodels.convert.tables import accept_older_keys, table_of


M = TypeVar("M", bound=nnx.Module)


def load_state_dict(
    model: M,
    state_dict: Mapping[str, Any] | str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
) -> M:
    """Fills the parameters of `model` in place and returns it.

    Args:
      model: any model of this package; also one made by `nnx.eval_shape`, which then holds real arrays.
      state_dict: the published package's state_dict, in PyTorch's layout – arrays or tensors – or the path of
        a .safetensors, .pt, .pth or .bin file.
      dtype: converts floating-point arrays; by default each keeps the type it comes in.

    Raises:
      ValueError: keys or shapes do not fit one to one, a derived or tied entry has another value, or float64
        comes in while JAX runs without it. Every problem is listed and `model` is untouched.
      OSError: the file cannot be read.
    """
    if isinstance(state_dict, str | os.PathLike):
        state_dict = read_state_dict(Path(state_dict))
    elif not isinstance(state_dict, Mapping):
        raise ValueError(
            f"state_dict must be a mapping or the path of a file; got a {type(state_dict).__name__}"
        )
    arrays = {key: as_numpy(key, value) for key, value in state_dict.items()}
    values = fit(model, table_of(model), accept_older_keys(type(model).__name__, arrays), dtype=dtype)
    for path, value in values.items():
        variable_at(model, path).set_value(jnp.asarray(value))
    return model


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters of `model` in PyTorch's layout, with every key of the published package, in its order."""
    return export(model, table_of(model))


def fit(
    model: nnx.Module,
    table: Iterable[Entry],
    arrays: Mapping[str, np.ndarray],
    *,
    dtype: DTypeLike | None = None,
) -> dict[str, np.ndarray]:
    """Returns path -> array in the model's layout; ValueError lists all that does not fit. Changes nothing."""
    entries = [entry for entry in table if isinstance(entry, Parameter | Derived | Tied)]
    problems = [f"not in the model: {key}" for key in arrays.keys() - {entry.theirs for entry in entries}]
    values: dict[str, np.ndarray] = {}
    for entry in entries:
        if entry.theirs not in arrays:
            problems.append(f"missing from the state_dict: {entry.theirs}")
            continue
        array = arrays[entry.theirs]
        match entry:
            case Parameter():
                variable = variable_at(model, entry.ours)
                shape, sizes = _their_shape(entry.axes, variable.shape)
                if array.shape != shape:
                    problems.append(f"{entry.theirs}: shape {array.shape}, the model needs {shape}")
                elif not jnp.issubdtype(array.dtype, jnp.floating):
                    problems.append(f"{entry.theirs}: dtype {array.dtype}, the model needs floating point")
                elif entry.expected is not None and not _agrees(array, entry.expected(), rounding=True):
                    problems.append(f"{entry.theirs}: not the values that the architecture determines")
                else:
                    array = array if dtype is None else array.astype(dtype)
                    if array.dtype == np.float64 and not jax.config.jax_enable_x64:
                        problems.append(
                            f"{entry.theirs}: float64 would be cut to float32; enable it with "
                            "jax.config.update('jax_enable_x64', True) or pass dtype=jnp.float32"
                        )
                    values[entry.ours] = rearrange(array, entry.axes, **sizes)
            case Derived():
                if not _agrees(array, entry.expected(), rounding=False):
                    problems.append(f"{entry.theirs}: not the values that the architecture determines")
            case Tied():
                twin = arrays.get(entry.to)
                if twin is not None and not _same_bits(array, twin):
                    problems.append(f"{entry.theirs}: must equal {entry.to}, to which it is tied")
    if problems:
        raise ValueError(
            f"the state_dict does not fit {type(model).__name__}\n  " + "\n  ".join(sorted(problems))
        )
    return values


def export(model: nnx.Module, table: Iterable[Entry]) -> dict[str, np.ndarray]:
    """The inverse of `fit`: key -> contiguous array in PyTorch's layout, in the order of the table."""
    state_dict: dict[str, np.ndarray] = {}
    entries = list(table)
    for entry in entries:
        match entry:
            case Parameter():
                array = np.asarray(variable_at(model, entry.ours)[...])
                left, right = entry.axes.split(" -> ")
                _, sizes = _their_shape(entry.axes, array.shape)
                # A copy: JAX's own buffer is read-only, and safetensors would write a strided view wrongly.
                state_dict[entry.theirs] = np.array(
                    rearrange(array, f"{right} -> {left}", **sizes), order="C"
                )
            case Derived() | Tied():
                state_dict[entry.theirs] = np.empty(
                    0
                )  # keeps the place; the value may depend on later entries
    for entry in entries:
        match entry:
            case Derived():
                value = entry.expected()
                dtype = value.dtype if entry.like is None else state_dict[entry.like].dtype
                state_dict[entry.theirs] = np.array(value, dtype=dtype)
            case Tied():
                state_dict[entry.theirs] = state_dict[entry.to].copy()
    return state_dict


def variable_at(model: nnx.Module, path: str) -> nnx.Variable:
    """The variable at a dotted path."""
    node: Any = model
    for part in path.split("."):
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    return node


def as_numpy(key: str, value: Any) -> np.ndarray:
    """A NumPy view of an array or a PyTorch tensor; ValueError names `key` otherwise."""
    if type(value).__module__.partition(".")[0] == "torch":
        from jaxmodels.convert import torch_io  # only reached when the caller has PyTorch

        return torch_io.to_numpy(value)
    array = np.asarray(value)
    if array.dtype == object:
        raise ValueError(f"the state_dict must hold arrays; got {key}: {type(value).__name__}")
    return array


def _their_shape(axes: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, int]]:
    """PyTorch's shape for a variable of `shape`, and the sizes of the named axes."""
    left, right = axes.split(" -> ")
    if right == "...":
        return tuple(shape), {}
    sizes = dict(zip(right.split(), shape, strict=True))
    groups = left.replace("(", " ( ").replace(")", " ) ").split()
    their_shape: list[int] = []
    size, inside = 1, False
    for token in groups:
        if token == "(":
            size, inside = 1, True
        elif token == ")":
            their_shape.append(size)
            inside = False
        else:
            axis = int(token) if token.isdigit() else sizes[token]
            if inside:
                size *= axis
            else:
                their_shape.append(axis)
    return tuple(their_shape), sizes


def _agrees(array: np.ndarray, expected: np.ndarray, *, rounding: bool) -> bool:
    """Whether `array` holds `expected`, in its own dtype; `rounding` allows a few units in the last place."""
    if array.shape != expected.shape or (array.dtype == bool) != (expected.dtype == bool):
        return False
    if not rounding:
        return bool(np.array_equal(array, expected.astype(array.dtype)))
    finfo = ml_dtypes.finfo(array.dtype)
    resolution = max(float(finfo.eps), float(np.finfo(expected.dtype).eps))
    difference = np.abs(array.astype(np.float64) - expected.astype(np.float64))
    # Below the smallest normal number float16 has a fixed step instead of a relative one.
    floor = float(finfo.smallest_subnormal)
    return bool(np.all(difference <= 4 * resolution * np.abs(expected.astype(np.float64)) + floor))


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
