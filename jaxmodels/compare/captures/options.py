"""What both sides of a capture share: arguments, types, and what is kept of an array. Needs neither framework."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import ml_dtypes
import numpy as np

from jaxmodels.compare.noise import is_inexact, projected, relative_error


DTYPES = ("float32", "float64", "bfloat16")
# Two runs of a model on the same inputs that differ by more are random.
LARGEST_REPEAT_ERROR = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 1e-2}
# Of the steps on both sides: the defaults of torch.optim, as in `optimizers`, which needs both frameworks.
OPTIMIZER = "adamw"
ADAMW: dict[str, Any] = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}

Inputs = Mapping[str, Any]
Batches = Callable[[int], Inputs]


@dataclass(kw_only=True)
class Runs:
    """What the runs of a model in its types have in common.

    Attributes:
      call: runs the model on the inputs.
      loss: a scalar from the model and the inputs; None for the mean of the squared outputs.
      batches: the inputs of each optimiser step.
      steps: how many follow the first gradient.
      learning_rate: of these steps.
      keep: what is kept of an array.
    """

    call: Callable[..., Any]
    loss: Callable[..., Any] | None
    batches: Batches
    steps: int
    learning_rate: float
    keep: Callable[[np.ndarray], Any]


def check_options(dtypes: Sequence[str], steps: int, limit: int | None) -> None:
    """Refuses wrong arguments of a capture.

    Raises:
      ValueError: names the argument and the rule.
    """
    if isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(DTYPES):
        raise ValueError(f"dtypes must be some of {', '.join(DTYPES)}; got dtypes={dtypes!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be an integer ≥ 0; got steps={steps!r}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a number of values ≥ 1, or None; got limit={limit!r}")


def check_inputs(inputs: Any) -> None:
    """Refuses inputs without names.

    Raises:
      ValueError: they are no dict.
    """
    if not isinstance(inputs, Mapping):
        raise ValueError(f"inputs must be a dict of arrays by name; got a {type(inputs).__name__}")


def keeper(limit: int | None) -> Callable[[np.ndarray], Any]:
    """What is kept of an array: itself, or its projection where it has more than `limit` numbers."""
    return lambda array: projected(array) if limit is not None and array.size > limit else array


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """An input of a run: floating-point numbers as `dtype`, complex ones with as many digits, others as they are."""
    if not is_inexact(array):
        return array
    if np.iscomplexobj(array):
        return array.astype(np.complex128 if dtype == "float64" else np.complex64)
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def is_repeated(outputs: Mapping[str, Any], again: Mapping[str, Any], dtype: str) -> bool:
    """Whether a second run returned the same."""
    bound = LARGEST_REPEAT_ERROR[dtype]
    return all(relative_error(again[name], value) <= bound for name, value in outputs.items())


def settings(
    steps: int, learning_rate: float, limit: int | None, output_axes: str | Mapping[str, str]
) -> dict[str, Any]:
    """What a capture says about how it was made."""
    return {
        "steps": steps,
        "learning_rate": learning_rate,
        "optimizer": OPTIMIZER,
        "limit": limit,
        "output_axes": output_axes if isinstance(output_axes, str) else dict(output_axes),
    }


def versions(*packages: str) -> dict[str, str]:
    """Of Python, NumPy, jaxmodels and these packages."""
    found = {"python": platform.python_version()}
    for package in ("jaxmodels", "numpy", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout
            continue
    return found
