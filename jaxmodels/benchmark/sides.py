"""Both sides of a user's file: from its functions `jax_side()` and `torch_side()`, or from its `pair()`.

The functions return a model, its inputs and, where it has them, `call`, `loss` and `output_axes`, as for `jaxmodels
capture`. A process that measures one side alone then imports one library alone.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jaxmodels.benchmark.kinds import Implementation
from jaxmodels.compare.pair_files import failure, read_pairs, run_file


if TYPE_CHECKING:  # a process that measures PyTorch must not load JAX
    from jaxmodels.compare.pair import Pair
    from jaxmodels.compare.preparation import Subject
    from jaxmodels.models import ModelName

Side = dict[str, Any]  # what the functions return
FUNCTIONS = ("jax_side", "torch_side")


def pairs_of(target: str) -> "list[Pair]":
    """The pairs of a file, or the one of a model.

    Raises:
      FileNotFoundError, PlacedError: as `read_pairs`.
    """
    if is_file(target):
        return read_pairs(Path(target).expanduser())
    from jaxmodels.compare.subjects import default_model, pair_of

    return [pair_of(default_model(cast("ModelName", target), 0))]


def is_file(target: str) -> bool:
    """Whether it is a file and not the name of a model."""
    return target.endswith(".py")


def has_sides(target: str) -> bool:
    """Whether a file has a function for each side."""
    return is_file(target) and all(hasattr(run_file(Path(target).expanduser()), name) for name in FUNCTIONS)


def sides_of_file(target: str, options: Mapping[str, Any]) -> Callable[[Implementation], Side]:
    """The sides that the functions of a file return.

    Args:
      target: the file.
      options: arguments, which a function gets if it has parameters of these names; None stands for its default.

    Returns:
      A function of the implementation. Its errors are those of `read_pairs`.
    """
    path = Path(target).expanduser()
    module = run_file(path)

    def side(implementation: Implementation) -> Side:
        name = "jax_side" if implementation == "jax" else "torch_side"
        function = getattr(module, name)
        known = inspect.signature(function).parameters
        given = {key: value for key, value in options.items() if key in known and value is not None}
        try:
            found = dict(function(**given))
        except Exception as error:
            raise failure(f"{name}()", error, path) from error
        found["model"] = (_in_evaluation if implementation == "jax" else _copied)(found["model"])
        return found

    return side


def sides_of_pair(target: str, number: int) -> Callable[[Implementation], Side]:
    """The sides of one of a target's pairs, with PyTorch's weights in both; a function of the implementation."""
    from jaxmodels.compare.preparation import as_jax_arrays, prepare
    from jaxmodels.compare.steps import learned_names

    @functools.cache
    def subject() -> "Subject":
        return prepare(pairs_of(target)[number], "float32")

    def side(implementation: Implementation) -> Side:
        pair = subject().pair
        shared: Side = {"output_axes": pair.output_axes}
        if implementation == "jax":
            parameters = pair.theirs.named_parameters(remove_duplicate=False)
            trained = {name for name, parameter in parameters if parameter.requires_grad}
            learned = {ours for ours, theirs in learned_names(pair).items() if theirs in trained}
            own = {"inputs": as_jax_arrays(pair, subject().inputs), "call": pair.call_ours}
            return shared | own | {"model": pair.ours, "loss": pair.loss_ours, "learned": learned}
        own = {"inputs": subject().inputs, "call": pair.call_theirs, "loss": pair.loss_theirs}
        return shared | own | {"model": _copied(subject().models["float32"])}

    return side


def _in_evaluation(model: Any) -> Any:
    from flax import nnx

    from jaxmodels.compare.adapters import as_nnx

    model = as_nnx(model)
    model = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    model.eval()  # also modules with such an attribute and no view of their own
    return model


def _copied(model: Any) -> Any:
    """A copy in evaluation mode: training steps change a model, and implementations may get the same one."""
    import copy

    return copy.deepcopy(model).eval()
