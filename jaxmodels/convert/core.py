"""PyTorch state_dict <-> Flax model: one to one, both ways, or a ValueError that lists every misfit.

Knows names and layouts (through the tables), not PyTorch.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from jaxmodels.checks import local_path
from jaxmodels.convert.files import read_weights
from jaxmodels.convert.layout import Layout
from jaxmodels.convert.table import Added, Derived, Entry, Parameter, Tied, Twin
from jaxmodels.convert.tables import accept_older_keys, table_of
from jaxmodels.convert.wrappers import choose_entry, strip_prefixes
from jaxmodels.nn.dtypes import float32_or_wider


M = TypeVar("M", bound=nnx.Module)

_LOADABLE = tuple(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))
MOST_LISTED = 200  # problems of one kind that an error spells out
_KINDS = ("missing from the state_dict", "not in the model")
_TOO_WIDE = "float64, which JAX would cut to float32"
_USE_FLOAT64 = "for float64: jax.config.update('jax_enable_x64', True); or pass dtype=jnp.float32"


def load_state_dict(
    model: M,
    state_dict: Mapping[str, Any] | str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    entry: str | None = None,
) -> M:
    """Fills the parameters of `model` in place and returns it.

    What is put around weights is removed, and one line of the log says so: an entry such as "state_dict" or
    "model" of a training checkpoint, and prefixes such as `module.` or `_orig_mod.` of the keys.

    Args:
      model: any model of this package; also one made by `nnx.eval_shape`, which then holds real arrays.
      state_dict: the published package's state_dict, in PyTorch's layout – arrays or tensors – or the path of
        a .safetensors, .pt, .pth, .bin, .ckpt or .pth.tar file, or of a folder with one or with shards of one.
      dtype: float16, bfloat16, float32 or float64, to which the arrays are converted; by default each keeps
        the type it comes in. A buffer of constants stays at float32 or wider.
      entry: which of several copies of the weights to load, for instance "ema".

    Raises:
      ValueError: keys, shapes or types do not fit one to one, a derived or tied entry has another value, or
        float64 comes in while JAX runs without it. At most 200 problems of one kind are listed, then a count.
        `model` is untouched.
      OSError: the file cannot be read.
    """
    table = list(table_of(model))
    dtype = None if dtype is None else _checked(dtype)
    source = ""
    if isinstance(state_dict, str | os.PathLike):
        source = f"{os.fspath(state_dict)}: "
        arrays, entry = read_weights(Path(local_path("state_dict", state_dict)), entry)
    else:
        arrays, entry = _as_arrays(state_dict, entry)
    name, known = type(model).__name__, {e.theirs for e in table if not isinstance(e, Twin)}
    arrays = strip_prefixes(accept_older_keys(name, arrays), known, entry=entry, source=source)
    try:
        fitted = fit(model, table, accept_older_keys(name, arrays), dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{source}{error}") from error
    # A copy, so that later changes of the caller's arrays do not reach the model; all of them before the first
    # is stored, so that running out of memory leaves the model as it was.
    values = {path: jnp.array(value) for path, value in fitted.items()}
    for path, value in values.items():
        variable_at(model, path).set_value(value)
    return model


def _as_arrays(state_dict: Any, entry: str | None) -> tuple[dict[str, np.ndarray], str | None]:
    """The arrays of a mapping, and `entry` if it chose none of them."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"state_dict must be a mapping or the path of a file; got a {type(state_dict).__name__}"
        )
    state_dict, entry = choose_entry(state_dict, entry)
    if odd := [repr(key) for key in state_dict if not isinstance(key, str)]:
        raise ValueError(f"the keys of a state_dict must be strings; got {', '.join(odd)}")
    return {key: as_numpy(key, value) for key, value in state_dict.items()}, entry


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters of `model` in PyTorch's layout, with every key of the published package, in its order.

    Raises:
      ValueError: `model` is none of this package's, or has shapes but no weights.
    """
    return export(model, table_of(model))


def fit(
    model: nnx.Module,
    table: Iterable[Entry],
    arrays: Mapping[str, np.ndarray],
    *,
    dtype: DTypeLike | None = None,
) -> dict[str, np.ndarray]:
    """Returns path -> array in the model's layout; ValueError lists all that does not fit. Changes nothing."""
    entries = [entry for entry in table if not isinstance(entry, Twin)]
    unknown = sorted(arrays.keys() - {entry.theirs for entry in entries})
    problems = [f"not in the model: {key}" for key in unknown]
    misfits: set[str] = set()
    values: dict[str, dict[int, np.ndarray]] = {}  # path -> the blocks of the variable
    layouts: dict[str, Layout] = {}
    added = {entry.to: entry for entry in entries if isinstance(entry, Added)}
    paired = {entry.theirs for entry in entries if isinstance(entry, Parameter)}
    for entry in entries:
        if entry.theirs not in arrays:
            problems.append(f"missing from the state_dict: {entry.theirs}")
            continue
        array = arrays[entry.theirs]
        found: list[str] = []
        match entry:
            case Parameter():
                layout = Layout(entry, variable_at(model, entry.ours).shape)
                wanted = _converted(array.dtype, dtype, exact=entry.expected is not None)
                found = _misfits(array, layout.their_shape, wanted, entry.expected)
                if not found and (other := added.get(entry.theirs)) and other.theirs in arrays:
                    found, array = _sum(array, arrays[other.theirs], other, paired=other.theirs in paired)
                if not found:
                    block = layout.block_from(array.astype(wanted, copy=False))
                    layouts[entry.ours] = layout
                    values.setdefault(entry.ours, {})[entry.block[0] if entry.block else 0] = block
            case Derived():
                if array.shape != entry.shape:
                    found = [f"shape {array.shape}, the model needs {entry.shape}"]
                elif not _agrees(array, entry.expected(), rounding=False):
                    found = ["not the values that the architecture determines"]
            case Tied():
                twin = arrays.get(entry.to)
                if twin is not None and entry.to not in misfits and not _same_bits(array, twin):
                    found = [f"must equal {entry.to}, to which it is tied"]
        problems += [f"{entry.theirs}: {problem}" for problem in found]
        misfits |= {entry.theirs} if found else set()
    problems += [] if problems else _missing_blocks(values, layouts)
    if problems:
        hint = "" if not any(problem.endswith(_TOO_WIDE) for problem in problems) else f"\n{_USE_FLOAT64}"
        raise ValueError(f"the state_dict does not fit {type(model).__name__}{_listed(problems)}{hint}")
    return {path: layouts[path].variable_from(blocks) for path, blocks in values.items()}


def _missing_blocks(
    values: Mapping[str, Mapping[int, np.ndarray]], layouts: Mapping[str, Layout]
) -> list[str]:
    return [
        f"{path}: the table fills {len(blocks)} of its {layouts[path].blocks} blocks"
        for path, blocks in values.items()
        if len(blocks) < layouts[path].blocks
    ]


def _sum(array: np.ndarray, other: np.ndarray, entry: Added, *, paired: bool) -> tuple[list[str], np.ndarray]:
    """What keeps `other` from being added to `array`, and the sum; what is not added may be `paired` with another."""
    if other.shape != array.shape:
        return [f"{entry.theirs} is added to it, but has the shape {other.shape}"], array
    share, count = entry.blocks
    kept = len(other) * share // count
    if not paired and other[kept:].any():
        return [
            f"{entry.theirs} must be zero from row {kept} on: the model has no second bias there, as in nnx.GRUCell"
        ], array
    return [], np.concatenate([array[:kept] + other[:kept], array[kept:]])


def _listed(problems: Iterable[str]) -> str:
    """The problems, each on a line; of one kind at most `MOST_LISTED`, and how many others there are."""
    kinds: dict[str, list[str]] = {}
    for problem in sorted(problems):
        kind = next((kind for kind in _KINDS if problem.startswith(f"{kind}: ")), "")
        kinds.setdefault(kind, []).append(problem)
    shown = sorted(problem for found in kinds.values() for problem in found[:MOST_LISTED])
    for kind, found in sorted(kinds.items()):
        if len(found) > MOST_LISTED:
            shown.append(f"{kind or 'of another shape, type or value'}: {len(found) - MOST_LISTED:,} more")
    return "".join(f"\n  {line}" for line in shown)


def _checked(dtype: DTypeLike) -> np.dtype:
    try:
        checked = np.dtype(dtype)
    except TypeError:
        checked = None
    if checked is None or checked not in _LOADABLE:
        names = ", ".join(map(str, _LOADABLE))
        raise ValueError(f"dtype must be one of {names}; got dtype={dtype!r}")
    return checked


def _converted(given: np.dtype, dtype: DTypeLike | None, *, exact: bool) -> np.dtype:
    """The type to store; constants (`exact`) lose no digits to a conversion of the weights."""
    if dtype is None:
        return given
    return np.dtype(float32_or_wider(dtype) if exact else dtype)


def _misfits(
    array: np.ndarray,
    shape: tuple[int, ...],
    wanted: np.dtype,
    expected: Callable[[], np.ndarray] | None,
) -> list[str]:
    """What keeps `array` from becoming a parameter of `shape`, stored as `wanted`."""
    if array.dtype == object:
        return ["not an array of numbers"]
    problems = []
    if array.shape != shape:
        problems.append(f"shape {array.shape}, the model needs {shape}")
    if array.dtype not in _LOADABLE:
        problems.append(f"dtype {array.dtype}, the model needs {', '.join(map(str, _LOADABLE))}")
    elif jax.dtypes.canonicalize_dtype(wanted) != wanted:
        problems.append(_TOO_WIDE)
    if not problems and expected is not None and not _agrees(array, expected(), rounding=True):
        problems.append("not the values that the architecture determines")
    return problems


def export(model: nnx.Module, table: Iterable[Entry]) -> dict[str, np.ndarray]:
    """The inverse of `fit`: key -> contiguous array in PyTorch's layout, in the order of the table."""
    state_dict: dict[str, np.ndarray] = {}
    entries = list(table)
    parts: dict[str, dict[int, np.ndarray]] = {}
    layouts: dict[str, Layout] = {}
    for entry in entries:
        match entry:
            case Parameter():
                value = variable_at(model, entry.ours).get_value()
                if isinstance(value, jax.ShapeDtypeStruct):
                    raise ValueError(
                        f"the {type(model).__name__} has shapes but no weights, as nnx.eval_shape makes it; "
                        "load weights first"
                    )
                array = np.asarray(value)
                layout = Layout(entry, array.shape)
                parts.setdefault(entry.theirs, {})[entry.part[0] if entry.part else 0] = layout.part_from(
                    array
                )
                layouts[entry.theirs] = layout
                state_dict[entry.theirs] = np.empty(0)
            case Derived() | Tied() | Added():
                # Keeps the place; the value may depend on later entries.
                state_dict[entry.theirs] = np.empty(0)
    added = {entry.theirs for entry in entries if isinstance(entry, Added)}
    for key, found in parts.items():
        if key in added:  # the rest of it is part of another entry
            zeros = np.zeros_like(next(iter(found.values())))
            found = dict.fromkeys(range(layouts[key].parts), zeros) | found
        state_dict[key] = layouts[key].entry_from(found)
    for entry in entries:
        match entry:
            case Derived():
                value = entry.expected()
                dtype = value.dtype if entry.like is None else state_dict[entry.like].dtype
                state_dict[entry.theirs] = np.array(value, dtype=dtype)
            case Tied():
                state_dict[entry.theirs] = state_dict[entry.to].copy()
            case Added() if entry.theirs not in parts:
                state_dict[entry.theirs] = np.zeros_like(state_dict[entry.to])
    return state_dict


def variable_at(model: nnx.Module, path: str) -> nnx.Variable:
    """The variable at a dotted path."""
    node: Any = model
    for part in path.split("."):
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    return node


def as_numpy(key: str, value: Any) -> np.ndarray:
    """A NumPy view of an array or a PyTorch tensor; of dtype object if it is neither.

    Raises:
      ValueError: a tensor without a NumPy counterpart; `key` is named.
    """
    torch = sys.modules.get("torch")  # a tensor can only come from a caller who has imported PyTorch
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        from jaxmodels.convert import torch_io

        try:
            return torch_io.view_as_numpy(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        return np.empty((), object)
    # JAX takes no other byte order than the machine's.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _agrees(array: np.ndarray, expected: np.ndarray, *, rounding: bool) -> bool:
    """Whether `array` holds `expected`, in its own dtype; `rounding` allows a few units in the last place."""
    if array.shape != expected.shape or (array.dtype == bool) != (expected.dtype == bool):
        return False
    if not rounding:
        return bool(np.array_equal(array, expected.astype(array.dtype)))
    # A model that once was in half precision keeps that rounding when it is converted back.
    for half in (ml_dtypes.bfloat16, np.float16):
        if np.array_equal(array, expected.astype(half).astype(array.dtype)):
            return True
    finfo = ml_dtypes.finfo(array.dtype)
    resolution = max(float(finfo.eps), float(np.finfo(expected.dtype).eps))
    difference = np.abs(array.astype(np.float64) - expected.astype(np.float64))
    # Below the smallest normal number float16 has a fixed step instead of a relative one.
    floor = float(finfo.smallest_subnormal)
    return bool(np.all(difference <= 4 * resolution * np.abs(expected.astype(np.float64)) + floor))


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
