"""Running either model: which argument is which, and a sentence where a run fails."""

import inspect
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any


def call_model(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Calls a model with inputs by name where it has parameters of these names, else by position."""
    args, kwargs = arguments(model, inputs)
    return model(*args, **kwargs)


def arguments(model: Any, inputs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the named arguments of `call_model`.

    Inputs whose names are the model's own parameters reach these, whatever their order. Otherwise they are
    passed in the order of the dict, except to keyword-only parameters; those beyond the parameters reach `**kwargs`.
    """
    # PyTorch's __call__ takes anything. It is not imported here, where a JAX model may be captured without it.
    torch = sys.modules.get("torch")
    parameters = _parameters(model.forward if torch and isinstance(model, torch.nn.Module) else model)
    named = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    if inputs and all(name in parameters and parameters[name].kind in named for name in inputs):
        return [], dict(inputs)
    keyword_only = {
        name: value
        for name, value in inputs.items()
        if name in parameters and parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    }
    kinds = [parameter.kind for parameter in parameters.values()]
    positions = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) + kinds.count(
        inspect.Parameter.POSITIONAL_ONLY
    )
    takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
    if takes_any_name and len(inputs) - len(keyword_only) > positions:
        return [], dict(inputs)
    return [value for name, value in inputs.items() if name not in keyword_only], keyword_only


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in or compiled: no signature to read
        return {}


class PairError(ValueError):
    """Something about the pair that its author can change; the sentence says what and how."""


@contextmanager
def layer_by_layer() -> Generator[None]:
    """PyTorch's transformers compute as in training while the block runs, not in one kernel that leaves padding out."""
    import torch  # here: a JAX model is captured where PyTorch is not installed

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def failures_explained(what: str, way_out: str) -> Generator[None]:
    """Turns whatever the user's code raises into one sentence.

    Raises:
      PairError: `what` failed; the sentence gives the first line of the error, and `way_out`.
    """
    try:
        yield
    except PairError:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise PairError(f"{what} fails with {type(error).__name__}: {reason}; {way_out}") from error
