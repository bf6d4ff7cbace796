"""Checks of arguments, with one wording for every model and reader: argument, rule, value.

Needs neither JAX nor PyTorch: arrays are judged by their shape and the name of their dtype. `torch_reference/checks.py`
repeats what the PyTorch twins need, because they must not import this package, which loads JAX.
"""

import difflib
import operator
import re
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any


def require_integer(name: str, value: Any, *, minimum: int) -> int:
    """Returns `value` as an int; ValueError unless it is an integer (not a bool) and at least `minimum`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum:
        raise ValueError(f"{name} must be an integer ≥ {minimum}; got {name}={value!r}")
    return number


def require_integer_fields(config: Any, **minimum: int) -> None:
    """Applies `require_integer` to every field annotated `int` or `int | None`; None passes in the latter.

    Args:
      config: a dataclass.
      minimum: the smallest value of each named field; 1 for the others.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is int or (field.type == int | None and value is not None):
            require_integer(field.name, value, minimum=minimum.get(field.name, 1))


def require_bool(name: str, value: Any) -> None:
    """ValueError unless `value` is True or False."""
    import numpy as np  # here: the command line answers before NumPy is loaded

    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be a bool; got {name}={value!r}")


def require_number(name: str, value: Any) -> None:
    """ValueError unless `value` is an int or a float (not a bool)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number; got {name}={value!r}")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}; got {name}={value!r}")


def require_rate(name: str, value: Any) -> None:
    """ValueError unless `value` is a rate of dropout: a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1); got {name}={value!r}")


def lists_to_tuples(config: Any) -> None:
    """Replaces lists in the fields of a frozen dataclass by tuples, so that it can be hashed."""
    for field in fields(config):
        if isinstance(value := getattr(config, field.name), list):
            object.__setattr__(config, field.name, tuple(value))


def require_divisible(name: str, value: int, by_name: str, by: int) -> None:
    """ValueError unless `value` is a multiple of `by`."""
    if value % by:
        raise ValueError(f"{name} must be a multiple of {by_name}; got {name}={value!r}, {by_name}={by!r}")


def require_height_width(name: str, value: Any, *, minimum: int) -> tuple[int, int]:
    """Returns (height, width) of an integer, which stands for both, or of a pair; ValueError otherwise."""
    sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
    try:
        height, width = (require_integer(name, side, minimum=minimum) for side in sides)
    except ValueError as error:
        raise ValueError(
            f"{name} must be an integer ≥ {minimum} or a pair (height, width) of them; got {name}={value!r}"
        ) from error
    return height, width


def require_shape(name: str, array: Any, shape: Sequence[int | str]) -> None:
    """ValueError unless `array.shape` fits `shape`, in which a string stands for any size and names it."""
    actual = tuple(array.shape)
    fits = len(actual) == len(shape) and all(
        isinstance(expected, str) or expected == size for expected, size in zip(shape, actual, strict=True)
    )
    if not fits:
        expected = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} must have shape {expected}; got {name}.shape={actual}")


def require_images(images: Any, channels: int) -> None:
    """ValueError unless `images` are floating-point, four-dimensional and channels-last."""
    require_shape("images", images, ("b", "height", "width", channels))
    require_floating("images", images)


def require_floating(name: str, array: Any) -> None:
    """ValueError unless `array` holds floating-point numbers."""
    if "float" not in array.dtype.name:  # float32, but also bfloat16 and float8, which NumPy does not count
        raise ValueError(
            f"{name} must be floating-point; got {name}.dtype={array.dtype}; scale and convert it first"
        )


def require_tokens(name: str, tokens: Any) -> None:
    """ValueError unless `tokens` are integers of shape (b, n)."""
    require_shape(name, tokens, ("b", "n"))
    if not tokens.dtype.name.startswith(("int", "uint")):
        raise ValueError(f"{name} must be integer ids; got {name}.dtype={tokens.dtype}")


def require_sequence(name: str, x: Any, mask: Any) -> None:
    """ValueError unless `x` has a position and `mask`, if there is one, a bool for each."""
    b, n = x.shape[:2]
    if n == 0:
        raise ValueError(f"{name} must have at least one position; got {name}.shape={tuple(x.shape)}")
    if mask is not None:
        require_shape("mask", mask, (b, n))
        if mask.dtype != bool:
            raise ValueError(f"mask must be bool, True where others may look; got mask.dtype={mask.dtype}")


def require_name(kind: str, name: str, names: Collection[str]) -> None:
    """ValueError, with the nearest name, unless `name` is one of `names`."""
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"there is no {kind} {name!r}; {meant}known: {', '.join(names)}")


def local_path(name: str, path: Any) -> Any:
    """The path with `~` expanded; ValueError unless it is one of this machine's file system."""
    if not isinstance(path, str | Path):  # None, or tyro's mark for a value that must be given
        return path
    text = str(path)
    if not text:
        raise ValueError(f"{name} must not be empty; '.' is the current folder")
    if found := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text):
        shown = re.sub(":/+", "://", text, count=1)  # Path keeps one slash
        raise ValueError(
            f"{name} must be a path in the file system, not an address that begins with {found[1]}://; mount it "
            f"first, or copy it; got {name}={shown!r}"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # nobody of that name, or no home folder
        raise ValueError(f"{name}: {text!r} names a home folder that is not known here") from error


def require_between(name: str, value: int, least: int, most: int) -> None:
    """ValueError unless `value` is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limits = f"≥ {least}" if isinstance(value, int) and value < least else f"between {least} and {most}"
        raise ValueError(f"{name} must be an integer {limits}; got {name}={value!r}")
