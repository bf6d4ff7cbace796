"""What both sides of a capture share: arguments, types, and what is kept of an array. Needs neither framework."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import ml_dtypes
import numpy as np

from jaxmodels.compare.calls import PairError, call_model, failures_explained
from jaxmodels.compare.noise import is_inexact, projected, relative_error
from jaxmodels.compare.outputs import ANY_AXES
from jaxmodels.compare.training import Training, with_learning_rate
from jaxmodels.convert.table import Entry


DTYPES = ("float32", "float64", "bfloat16")
# Two runs of a model on the same inputs that differ by more are random.
LARGEST_REPEAT_ERROR = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 1e-2}
Mode = Literal["eval", "train"]

Inputs = Mapping[str, Any]
T = TypeVar("T", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a side is captured: the keyword arguments of `capture_torch` and `capture_jax`.

    Attributes:
      name: what reports call the pair; by default the model's class.
      dtypes: the types in which the model runs: "float64", "float32", "bfloat16". From float32 and float64 the noise of
        float32 is measured, from all three that of bfloat16 and TF32. On a TPU leave float64 out: it has none.
      call: runs the model on the inputs; by default they are passed by name, or in the order of the dict.
      loss: a scalar from the model and the inputs; by default the mean of the squared outputs.
      batches: the inputs of each optimiser step, counted from 0; by default `inputs` at every step.
      mode: "eval" as `model.eval()`, or "train" as `model.train()`. In training mode the rates of dropout are set to
        0, and the running statistics after a forward pass are kept.
      steps: how many optimiser steps follow the first gradient; with 0 the weights stay.
      learning_rate: that of AdamW, where `training` names no other optimiser.
      training: the optimiser of the steps, as `compare` takes it. One of your own needs the field of this side alone.
      routing: for models that choose tokens: gets the model and the inputs, and returns what each router selects
        (objects with `indices` and `margin`). `call` and `loss` then take `routing=`, a list of indices.
      routers: the routers' names, which are PyTorch's paths.
      full_precision: whether float32 products are computed with all digits. False keeps the settings in force,
        such as TF32 on a GPU and bfloat16 on a TPU; the capture says which products they make.
      limit: tensors of more numbers are kept as projections; see `jaxmodels.compare.projection`.
      table: which parameters and modules are which of the other side's, where that is known here.
      output_axes: einops patterns from PyTorch's outputs to JAX's, as `Pair` takes them.

    Raises:
      ValueError: a wrong value; it names the argument and the rule.
    """

    name: str | None = None
    dtypes: Sequence[str] = DTYPES[:2]
    call: Callable[..., Any] = call_model
    loss: Callable[..., Any] | None = None
    batches: Callable[[int], Inputs] | None = None
    mode: Mode = "eval"
    steps: int = 3
    learning_rate: float = 1e-3
    training: Training | None = None
    routing: Callable[..., Any] | None = None
    routers: Sequence[str] = ()
    full_precision: bool = True
    limit: int | None = None
    table: Sequence[Entry] | None = None
    output_axes: str | Mapping[str, str] = ANY_AXES

    def __post_init__(self) -> None:
        dtypes, steps, limit = self.dtypes, self.steps, self.limit
        if isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(DTYPES):
            raise ValueError(f"dtypes must be some of {', '.join(DTYPES)}; got dtypes={dtypes!r}")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"steps must be an integer ≥ 0; got steps={steps!r}")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"limit must be a number of values ≥ 1, or None; got limit={limit!r}")
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be 'eval' or 'train'; got mode={self.mode!r}")
        if (self.routing is None) != (not self.routers):
            raise ValueError("routing and routers belong together: give the name of each router, or neither")

    @property
    def optimizer(self) -> Training:
        """That of the steps."""
        return self.training or with_learning_rate(None, self.learning_rate)

    @property
    def settings(self) -> dict[str, Any]:
        """What a capture says about how it was made."""
        training = self.optimizer
        values = {
            key: value
            for key, value in asdict(training).items()
            if not key.startswith("optimizer_") and key != "decayed"
        }
        values |= {
            "own": training.own,
            "masked": training.decayed is not None,
            "same_in_optax": training.same_in_optax,
        }
        axes = self.output_axes
        return {
            "mode": self.mode,
            "steps": self.steps,
            "training": values,
            "routers": list(self.routers),
            "limit": self.limit,
            "output_axes": axes if isinstance(axes, str) else dict(axes),
        }

    @property
    def keep(self) -> Callable[[np.ndarray], Any]:
        """What is kept of an array: itself, or its projection where it has more than `limit` numbers."""
        limit = self.limit
        return lambda array: projected(array) if limit is not None and array.size > limit else array


@dataclass(frozen=True, kw_only=True)
class JaxOptions(Options):
    """Those of `capture_jax`, which has more.

    Attributes:
      to_ours: turns the inputs into the model's layout, as `Pair` takes it. The capture holds the inputs as they are
        given; without `to_ours` the model gets these.
      routing_from: a PyTorch capture whose routers' choices are repeated, as toss-ups need it.
    """

    to_ours: Callable[[Inputs], Inputs] = field(default=lambda inputs: inputs)
    routing_from: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.routing_from is not None and self.routing is None:
            raise ValueError(
                "routing_from needs routing and routers: without them the model takes no choices"
            )


def options_from(kind: type[T], given: Mapping[str, Any], function: str) -> T:
    """The options of a function from its keyword arguments.

    Raises:
      ValueError: an argument that it does not take, or a wrong value.
    """
    known = [one.name for one in fields(kind)]
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        raise ValueError(f"{function} does not take {', '.join(unknown)}; it takes {', '.join(known)}")
    return kind(**given)


def check_inputs(inputs: Any) -> None:
    """Refuses inputs without names.

    Raises:
      ValueError: they are no dict.
    """
    if not isinstance(inputs, Mapping):
        raise ValueError(f"inputs must be a dict of arrays by name; got a {type(inputs).__name__}")


def batch_of(options: Options, inputs: Inputs, step: int) -> Inputs:
    """The inputs of an optimiser step.

    Raises:
      ValueError: they have other names or shapes than the inputs, or `batches` fails.
    """
    if options.batches is None:
        return inputs
    with failures_explained(f"batches({step})", "it gets the number of a step and returns arrays by name"):
        batch = dict(options.batches(step))
    shapes, expected = ({key: np.shape(value) for key, value in part.items()} for part in (batch, inputs))
    if shapes != expected:
        raise ValueError(
            f"batches({step}) must have the names and shapes of inputs, which are {expected}; got {shapes}"
        )
    return batch


def require_outputs(outputs: Mapping[str, Any]) -> None:
    """Refuses a model of whose outputs none is an array: no two captures of it could differ.

    Raises:
      PairError: there is none.
    """
    if not outputs:
        raise PairError("the model returns nothing that can be compared: return arrays from call")


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


def dropout_note(paths: Sequence[str]) -> list[str]:
    """What a capture in training mode says of the layers that drop nothing."""
    return [f"{', '.join(paths)}: the rate of dropout is set to 0"] if paths else []


def versions(*packages: str) -> dict[str, str]:
    """Of Python, NumPy, jaxmodels and these packages."""
    found = {"python": platform.python_version()}
    for package in ("jaxmodels", "numpy", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout
            continue
    return found
