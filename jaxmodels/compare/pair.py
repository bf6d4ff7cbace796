"""Two models that should be one: what the comparison is given."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from jaxmodels.compare.adapters import as_nnx, call_bound
from jaxmodels.compare.calls import call_model
from jaxmodels.compare.outputs import ANY_AXES, OutputNames, chosen, names_by_side
from jaxmodels.convert.table import Entry, Parameter, Twin


Inputs = Mapping[str, Any]  # arrays or tensors


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A JAX model, a PyTorch model and how they correspond.

    Attributes:
      name: what the report calls the pair.
      ours: the JAX model: an `nnx.Module`, whose weights are overwritten with PyTorch's; or a model of another library,
        which keeps its own: an Equinox module, alone or with its state; a Linen module and its variables; Haiku's
        transformed functions, parameters and state; `Linen`, `Equinox`, `Haiku` and `Function` take options as well.
        Given any of these, the attribute is an `nnx.Module` that holds the same arrays.
      theirs: the PyTorch model; its weights are the ones that both sides use.
      table: which parameter and which module is which. For your own models `table_from_names` writes it.
      inputs: arrays or tensors by name, in PyTorch's layout; floating-point ones are converted to the compared type.
        Where a model has parameters of all these names they are passed by name, otherwise in the order of the dict.
      to_ours: turns the inputs into the Flax model's layout.
      call_ours, call_theirs: run the model, as its library calls it, on the inputs; return an array, or tuples,
        lists, dicts and dataclasses of arrays with the same names on both sides.
      outputs: names of the outputs to compare, where not all are; the others are left out, also of the loss. An
        output inside of others has a dotted path, such as "hidden_states.2"; "hidden_states" stands for all of
        them. A dict has JAX's name for each of PyTorch's.
      output_axes: einops pattern from PyTorch's outputs to ours, for all that have its rank; or a dict of patterns by
        the output's name.
      batches: the inputs of each optimiser step, counted from 0, with the names and shapes of `inputs`; by
        default `inputs` at every step.
      loss_ours, loss_theirs: a scalar for the gradients and the optimiser steps; both get the model and the
        inputs. By default the mean of the squared outputs, those that are floating-point.
      routing_ours, routing_theirs: for models that choose tokens: what each router selects (objects with
        `indices` and `margin`), in the order of calls. `call_*` and `loss_*` then take `routing=`, a list of
        indices to use instead.
      routers: PyTorch paths of the routers.
      only_theirs: names in PyTorch's state_dict, or of modules with all they hold, that the Flax model lacks on
        purpose. They stay as they are in the training run.
      only_ours: paths of variables or modules of the Flax model that PyTorch lacks on purpose; alike.
    """

    name: str
    ours: Any
    theirs: torch.nn.Module
    table: tuple[Entry, ...]
    inputs: Inputs
    batches: Callable[[int], Inputs] | None = None
    to_ours: Callable[[Inputs], Inputs] = field(default=lambda inputs: inputs)
    call_ours: Callable[..., Any] = call_model
    call_theirs: Callable[..., Any] = call_model
    outputs: OutputNames | None = None
    output_axes: str | Mapping[str, str] = ANY_AXES
    loss_ours: Callable[..., Any] | None = None
    loss_theirs: Callable[..., Any] | None = None
    routing_ours: Callable[[Any, Mapping[str, Any]], Any] | None = None
    routing_theirs: Callable[[Any, Mapping[str, Any]], Any] | None = None
    routers: tuple[str, ...] = ()
    only_theirs: tuple[str, ...] = ()
    only_ours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ours", as_nnx(self.ours))
        names = (None, None) if self.outputs is None else names_by_side(self.outputs)
        for attribute, chosen_names, side in (
            ("call_ours", names[0], "JAX"),
            ("call_theirs", names[1], "PyTorch"),
            ("loss_ours", None, "JAX"),
            ("routing_ours", None, "JAX"),
        ):
            call = getattr(self, attribute)
            if isinstance(call, _Call):  # of the pair that this one is a changed copy of
                call = call.function
            if call is not None and (side == "JAX" or chosen_names is not None):
                call = _Call(call, chosen_names, side)
            object.__setattr__(self, attribute, call)

    @property
    def twins(self) -> list[Twin]:
        """The pairs of modules, for the layer-by-layer comparison."""
        return [entry for entry in self.table if isinstance(entry, Twin)]


@dataclass(frozen=True)
class _Call:
    """A function of the caller's. It gets a JAX model as its library calls it, and returns the chosen outputs."""

    function: Callable[..., Any]
    names: Mapping[str, str] | None
    side: str

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        result = call_bound(self.function, model, *args, **kwargs)
        return result if self.names is None else chosen(result, self.names, self.side)


def parameters_of(table: Iterable[Entry]) -> list[Parameter]:
    """The parameters of a table, in its order."""
    return [entry for entry in table if isinstance(entry, Parameter)]
