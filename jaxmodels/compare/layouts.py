"""How the parameters of common layers are named and laid out in Flax and in PyTorch, and the table made of that."""

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from flax import nnx

from jaxmodels.compare.adapters import adapter_of, as_nnx, refusal_of
from jaxmodels.compare.adapters.protocol import Cell
from jaxmodels.compare.adapters.tables import adapted_table
from jaxmodels.compare.composites import Composites
from jaxmodels.compare.recurrent import paired_cells
from jaxmodels.compare.stacks import in_block, layer_path, stacked_path
from jaxmodels.convert.table import Entry, Parameter, Twin


# Flax's name -> PyTorch's, for layers whose parameters have one axis or the same axes on both sides.
NORM_NAMES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
NORMS = (nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.BatchNorm)
STANDARD = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.ConvTranspose, nnx.Embed, *NORMS)
# Rates and momenta that are closer are one number, written in another way.
SETTINGS_AGREE = 1e-6
# Names of a kernel's spatial axes by their number.
SPATIAL = {1: "w", 2: "h w", 3: "d h w"}
# Modules whose activations have their channels on axis 1 in PyTorch and on the last axis in Flax.
CHANNELS_FIRST = (
    *(
        getattr(torch.nn, f"{name}{axes}d")
        for name in (
            "Conv",
            "ConvTranspose",
            "BatchNorm",
            "InstanceNorm",
            "MaxPool",
            "AvgPool",
            "AdaptiveMaxPool",
            "AdaptiveAvgPool",
        )
        for axes in (1, 2, 3)
    ),
    torch.nn.GroupNorm,
    torch.nn.SyncBatchNorm,
    torch.nn.Upsample,
    torch.nn.PixelShuffle,
    torch.nn.PixelUnshuffle,
)


def table_from_names(
    ours: Any, theirs: torch.nn.Module, names: Mapping[str, str] | None = None
) -> tuple[Entry, ...]:
    """The table of any two models whose modules have the same names.

    Args:
      ours: whatever `Pair.ours` may be; other libraries' layers are recognised likewise. Of nnx, Linear,
        LinearGeneral, Conv, ConvTranspose, Embed, MultiHeadAttention, the norms and the recurrent cells are
        recognised with their layouts; every other variable must have PyTorch's name and axes.
      theirs: the PyTorch model.
      names: dotted path of a Flax module -> path of its PyTorch twin, for those that differ; what lies below
        a renamed module follows it.

    Raises:
      ValueError: a name that neither model has, or `ours` is no model.
    """
    ours = as_nnx(ours)
    if not isinstance(ours, nnx.Module):
        raise ValueError(refusal_of(ours, "ours"))
    torch_modules = dict(theirs.named_modules())
    adapter = adapter_of(ours)
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(ours)}
    known = dict.fromkeys(adapter.modules(ours)) if adapter else modules
    composites = Composites(ours, torch_modules)
    names = dict(names or {})
    _check_names(names, known, [*torch_modules, *composites.cells])
    if adapter:
        return adapted_table(ours, torch_modules, names, composites)
    # A sequential's layers lie in a list here, and directly below it there.
    renamed = {
        f"{path}.layers" if path else "layers": path
        for path, module in modules.items()
        if isinstance(module, nnx.Sequential)
        and (f"{path}.layers" if path else "layers") not in torch_modules
    }
    renamed = {inner: _renamed(path, names) for inner, path in renamed.items()} | names
    their_cells = {
        path: _renamed(path, renamed) for path, one in composites.ours.items() if isinstance(one, Cell)
    }
    paired = paired_cells(their_cells, composites.cells)
    entries: list[Entry] = []
    packed: list[str] = []
    for path, module in sorted(modules.items()):
        if isinstance(module, nnx.List | nnx.Dict):
            continue
        their_path = _renamed(path, renamed)
        twin = torch_modules.get(their_path)
        stack = _stack(path, modules, torch_modules, renamed)
        entries += [Twin(one, layer_path(path, i), None) for i, one in enumerate(stack)]
        # The root is left out: its inputs are the pair's, in two layouts, and its outputs are compared anyway.
        if their_path and twin is not None and not stack:
            entries.append(Twin(their_path, path, None))
        if any(path.startswith(f"{outer}.") for outer in packed):
            continue
        composite = [] if stack else composites.entries(path, paired.get(path, their_path))
        found = composite or list(_stacked(path, module, stack, torch_modules, composites))
        if path in composites.ours and found:
            packed.append(path)
        entries += found or _parameters(path, their_path, twin, module)
    return tuple(entries)


def _stack(
    path: str,
    modules: Mapping[str, object],
    torch_modules: Mapping[str, torch.nn.Module],
    renamed: Mapping[str, str],
) -> list[str]:
    """The PyTorch layers of a module whose weights are stacked for a scan; empty where they are not."""
    outer = path
    while outer:
        where, module = _renamed(outer, renamed), modules.get(outer)
        layers = torch_modules.get(where)
        if isinstance(layers, torch.nn.ModuleList | torch.nn.Sequential):
            if module is None:  # a plain list
                return []
            shapes = [
                variable.shape
                for _, variable in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat)))
            ]
            if not shapes or any(shape[:1] != (len(layers),) for shape in shapes):
                return []
            found = [f"{where}.{name}{path[len(outer) :]}" for name, _ in layers.named_children()]
            # A list of layers may be as long as its layers are wide.
            in_a_list = isinstance(module, nnx.List | nnx.Dict | nnx.Sequential)
            return found if not in_a_list and all(one in torch_modules for one in found) else []
        outer = outer.rpartition(".")[0]
    return []


def _stacked(
    path: str,
    module: nnx.Module,
    stack: list[str],
    torch_modules: Mapping[str, torch.nn.Module],
    composites: Composites,
) -> Iterator[Entry]:
    """The entries of a module whose weights are stacked."""
    ranks = {
        f"{path}.{name}": variable.ndim
        for name, variable in vars(module).items()
        if hasattr(variable, "ndim")
    }
    for index, their_path in enumerate(stack):
        for entry in composites.entries(path, their_path) or _parameters(
            path, their_path, torch_modules[their_path], module, stacked=1
        ):
            rank = ranks.get(entry.ours, 0) - 1 if isinstance(entry, Parameter) else 0
            yield in_block(entry, index, len(stack), rank) if isinstance(entry, Parameter) else entry


def standard_layers(ours: nnx.Module, theirs: torch.nn.Module, twins: Iterable[Twin]) -> dict[str, bool]:
    """The PyTorch paths of twins that are layers of both libraries, and whether their axis 1 holds channels."""
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(ours)}
    torch_modules = dict(theirs.named_modules())
    adapter = adapter_of(ours)
    found = {}
    for twin in twins:
        path = stacked_path(twin.ours)
        module, torch_module = modules.get(path), torch_modules.get(twin.theirs)
        standard = adapter.is_standard(path) if adapter else isinstance(module, STANDARD)
        if standard and type(torch_module).__module__.startswith("torch.nn."):
            channels_last = adapter is None or adapter.channels_last
            found[twin.theirs] = channels_last and isinstance(torch_module, CHANNELS_FIRST)
    return found


def unequal_settings(ours: nnx.Module, theirs: torch.nn.Module, twins: Iterable[Twin]) -> list[str]:
    """Settings of standard layers that take part in training mode alone, and differ: a sentence for each."""
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(ours)}
    torch_modules = dict(theirs.named_modules())
    found = []
    for twin in twins:
        module, torch_module = modules.get(stacked_path(twin.ours)), torch_modules.get(twin.theirs)
        for name, a, b in _training_settings(module, torch_module):
            if abs(a - b) > SETTINGS_AGREE:
                found.append(
                    f"{twin.theirs}: {name} is {b:g} in PyTorch and {a:g} in JAX; it takes no part in evaluation "
                    "mode, which is what was compared: compare in training mode (--mode train) as well"
                )
    return found


def _training_settings(module: object, torch_module: object) -> Iterator[tuple[str, float, float]]:
    """(name, ours, theirs) of what a pair of layers is set to."""
    match module, torch_module:
        case nnx.Dropout(), torch.nn.modules.dropout._DropoutNd():
            yield "the rate of dropout", module.rate, torch_module.p
        case nnx.MultiHeadAttention(), torch.nn.MultiheadAttention():
            yield "the rate of dropout", module.dropout_rate, torch_module.dropout
        case nnx.BatchNorm(), torch.nn.modules.batchnorm._BatchNorm() if torch_module.momentum is not None:
            # PyTorch's momentum is the share of the new statistics, Flax's that of the old ones.
            yield "the share of the old statistics", module.momentum, 1 - torch_module.momentum


def _check_names(names: Mapping[str, str], modules: Container[str], torch_modules: Container[str]) -> None:
    unknown = [f"not in the Flax model: {path}" for path in names if path not in modules]
    unknown += [f"not in the PyTorch model: {path}" for path in names.values() if path not in torch_modules]
    if unknown:
        raise ValueError("names must pair existing modules\n  " + "\n  ".join(unknown))


def _parameters(
    path: str, their_path: str, twin: torch.nn.Module | None, module: nnx.Module, *, stacked: int = 0
) -> Iterator[Parameter]:
    """The entries of a module's own variables; `stacked` axes in front of theirs count layers."""
    for name, variable in vars(module).items():
        if not isinstance(variable, nnx.Param | nnx.BatchStat):
            continue
        own, key = (f"{where}.{name}" if where else name for where in (path, their_path))
        weight = f"{their_path}.weight" if their_path else "weight"
        match module:
            case nnx.Linear() if name == "kernel":
                yield Parameter(weight, own, _linear_axes(twin))
            case nnx.LinearGeneral():
                yield _general(module, name, own, weight if name == "kernel" else key)
            case nnx.ConvTranspose() if name == "kernel":
                yield _transposed(module, own, weight, variable.ndim - stacked)
            case nnx.Conv() if name == "kernel":
                spatial = SPATIAL.get(variable.ndim - stacked - 2, "")
                yield Parameter(weight, own, f"o i {spatial} -> {spatial} i o")
            case nnx.Embed() if name == "embedding":
                yield Parameter(weight, own)
            case _ if isinstance(module, NORMS):
                their_name = NORM_NAMES.get(name, name)
                yield Parameter(f"{their_path}.{their_name}" if their_path else their_name, own)
            case _:
                yield Parameter(key, own)


def _linear_axes(twin: torch.nn.Module | None) -> str:
    """A Linear's kernel; in PyTorch it may be a convolution of one pixel."""
    weight = getattr(twin, "weight", None)
    ones = " 1" * (weight.ndim - 2) if isinstance(weight, torch.Tensor) else ""
    return f"o i{ones} -> i o"


def _general(module: nnx.LinearGeneral, name: str, own: str, key: str) -> Parameter:
    """Several axes at once, such as heads and their features; PyTorch's Linear has merged them."""
    outputs = " ".join(f"o{i}" for i in range(len(module.out_features)))
    if name != "kernel":
        return Parameter(key, own, f"({outputs}) -> {outputs}")
    inputs = " ".join(f"i{i}" for i in range(len(module.in_features)))
    return Parameter(key, own, f"({outputs}) ({inputs}) -> {inputs} {outputs}")


def _transposed(module: nnx.ConvTranspose, own: str, key: str, rank: int) -> Parameter:
    """PyTorch's kernel runs backwards along its spatial axes, unless Flax turns its own round."""
    spatial = SPATIAL.get(rank - 2, "")
    if module.transpose_kernel:
        return Parameter(key, own, f"i o {spatial} -> {spatial} o i")
    return Parameter(key, own, f"i o {spatial} -> {spatial} i o", flip=rank - 2)


def _renamed(path: str, names: Mapping[str, str]) -> str:
    """Replaces the longest prefix of `path` that `names` knows."""
    prefix = path
    while prefix and prefix not in names:
        prefix = prefix.rpartition(".")[0]
    if prefix not in names:
        return path
    return (names[prefix] + path[len(prefix) :]).removeprefix(".")
