"""Two models that should be one: what the comparison is given."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flax import nnx

from jaxmodels.convert.table import Entry, Parameter, Twin


Inputs = Mapping[str, np.ndarray]


def _call(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model(*inputs.values())


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A Flax model, a PyTorch model and how they correspond.

    Attributes:
      name: for the report.
      ours: the Flax model; its weights are overwritten with PyTorch's.
      theirs: the PyTorch model; its weights are the ones that both sides use.
      table: which parameter and which module is which. For your own models `table_from_names` writes it.
      inputs: arrays by name, in PyTorch's layout; floating-point ones are converted to the compared type.
      to_ours: turns the inputs into the Flax model's layout.
      call_ours, call_theirs: run the model on the inputs; return an array or a tuple of arrays.
      output_axes: einops pattern from PyTorch's outputs to ours.
      batches: the inputs of each optimiser step, counted from 0, with the names and shapes of `inputs`; by
        default `inputs` at every step.
      loss_ours, loss_theirs: a scalar for the gradients and the optimiser steps; both get the model and the
        inputs. By default the mean of the squared outputs.
      routing_ours, routing_theirs: for models that choose tokens: what each router selects (objects with
        `indices` and `margin`), in the order of calls. `call_*` and `loss_*` then take `routing=`, a list of
        indices to use instead.
      routers: PyTorch paths of the routers.
    """

    name: str
    ours: nnx.Module
    theirs: torch.nn.Module
    table: tuple[Entry, ...]
    inputs: Inputs
    batches: Callable[[int], Inputs] | None = None
    to_ours: Callable[[Inputs], Inputs] = field(default=lambda inputs: inputs)
    call_ours: Callable[..., Any] = _call
    call_theirs: Callable[..., Any] = _call
    output_axes: str = "... -> ..."
    loss_ours: Callable[..., Any] | None = None
    loss_theirs: Callable[..., Any] | None = None
    routing_ours: Callable[[Any, Mapping[str, Any]], Any] | None = None
    routing_theirs: Callable[[Any, Mapping[str, Any]], Any] | None = None
    routers: tuple[str, ...] = ()

    @property
    def twins(self) -> list[Twin]:
        """The pairs of modules, for the layer-by-layer comparison."""
        return [entry for entry in self.table if isinstance(entry, Twin)]


# Module type -> {variable: (PyTorch's name, axes there -> here)}. Anything else keeps its name and its axes.
LAYOUTS: dict[type[nnx.Module], dict[str, tuple[str, str]]] = {
    nnx.Linear: {"kernel": ("weight", "o i -> i o")},
    nnx.Conv: {"kernel": ("weight", "")},  # by rank, below
    nnx.LayerNorm: {"scale": ("weight", "... -> ...")},
    nnx.RMSNorm: {"scale": ("weight", "... -> ...")},
    nnx.GroupNorm: {"scale": ("weight", "... -> ...")},
    nnx.Embed: {"embedding": ("weight", "... -> ...")},
}
CONV_AXES = {3: "o i w -> w i o", 4: "o i h w -> h w i o", 5: "o i d h w -> d h w i o"}


def table_from_names(
    ours: nnx.Module, theirs: torch.nn.Module, names: Mapping[str, str] | None = None
) -> tuple[Entry, ...]:
    """The table of any two models.

    Args:
      ours: Linear, Conv, LayerNorm, RMSNorm, GroupNorm and Embed layers are recognised with their layouts;
        every other variable must have PyTorch's name and axes.
      theirs: the PyTorch model.
      names: dotted path of a Flax module -> path of its PyTorch twin, for those that differ; what lies below
        a renamed module follows it.

    Raises:
      ValueError: a name that neither model has.
    """
    names = dict(names or {})
    torch_paths = {path for path, _ in theirs.named_modules()}
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(ours)}
    unknown = [f"not in the Flax model: {ours_path}" for ours_path in names if ours_path not in modules]
    unknown += [f"not in the PyTorch model: {path}" for path in names.values() if path not in torch_paths]
    if unknown:
        raise ValueError("names must pair existing modules\n  " + "\n  ".join(unknown))

    entries: list[Entry] = []
    for path, module in sorted(modules.items()):
        their_path = _renamed(path, names)
        # The root is left out: its inputs are the pair's, in two layouts, and its outputs are compared anyway.
        if their_path and their_path in torch_paths:
            channels_first = isinstance(module, nnx.Conv) and module.kernel.ndim == 4
            entries.append(Twin(their_path, path, "b c h w -> b h w c" if channels_first else "... -> ..."))
        layout = next((table for kind, table in LAYOUTS.items() if isinstance(module, kind)), {})
        for name, variable in vars(module).items():
            if isinstance(variable, nnx.Param):
                their_name, axes = layout.get(name, (name, "... -> ..."))
                key = f"{their_path}.{their_name}" if their_path else their_name
                own = f"{path}.{name}" if path else name
                entries.append(Parameter(key, own, axes or CONV_AXES[variable.ndim]))
    return tuple(entries)


def _renamed(path: str, names: Mapping[str, str]) -> str:
    """Replaces the longest prefix of `path` that `names` knows."""
    prefix = path
    while prefix and prefix not in names:
        prefix = prefix.rpartition(".")[0]
    if prefix not in names:
        return path
    return (names[prefix] + path[len(prefix) :]).removeprefix(".")


def parameters_of(table: Iterable[Entry]) -> list[Parameter]:
    """The parameters of a table, in PyTorch's order."""
    return [entry for entry in table if isinstance(entry, Parameter)]
