"""The table of recurrent cells: gates in one weight or in one each, layers and directions, and PyTorch's second bias.

PyTorch's nn.LSTM, nn.GRU and nn.RNN hold all layers and directions; the JAX libraries have one cell for each. Where
PyTorch adds two biases they have one. The second one is `Added` to the first: both are one variable, and `compare`
lets only the first one learn.
"""

import re
from collections.abc import Container, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from flax import nnx

from jaxmodels.compare.adapters.protocol import Cell
from jaxmodels.convert.table import Added, Entry, Parameter


CELLS: dict[type, Cell] = {
    nnx.LSTMCell: Cell(
        "LSTM",
        inputs=("ii.kernel", "if_.kernel", "ig.kernel", "io.kernel"),
        state=("hi.kernel", "hf.kernel", "hg.kernel", "ho.kernel"),
        bias=("hi.bias", "hf.bias", "hg.bias", "ho.bias"),
    ),
    nnx.OptimizedLSTMCell: Cell("LSTM", ("dense_i.kernel",), ("dense_h.kernel",), ("dense_h.bias",)),
    nnx.GRUCell: Cell("GRU", ("dense_i.kernel",), ("dense_h.kernel",), ("dense_i.bias",)),
    nnx.SimpleCell: Cell("RNN", ("dense_i.kernel",), ("dense_h.kernel",), ("dense_i.bias",)),
}
BACKWARD = re.compile(r"backward|reverse|bwd")


class TorchCell(NamedTuple):
    """One layer and direction of a recurrent module, or a cell.

    Attributes:
      path: of the module.
      module: it.
      end: how the names of its parameters end, such as "_l1_reverse"; empty for a cell.
    """

    path: str
    module: torch.nn.Module
    end: str


def cell_of(module: object) -> Cell | None:
    """How a cell of nnx keeps its weights."""
    return next((CELLS[kind] for kind in type(module).__mro__ if kind in CELLS), None)


def torch_cells(modules: Mapping[str, torch.nn.Module]) -> dict[str, TorchCell]:
    """The cells in PyTorch modules by path; the layers of an nn.LSTM "rnn" are "rnn.l0", "rnn.l0_reverse", "rnn.l1"."""
    found: dict[str, TorchCell] = {}
    for path, module in modules.items():
        if isinstance(module, torch.nn.RNNCellBase):
            found[path] = TorchCell(path, module, "")
        elif isinstance(module, torch.nn.RNNBase):
            for layer in range(module.num_layers):
                for end in (f"l{layer}", f"l{layer}_reverse")[: 1 + module.bidirectional]:
                    found[f"{path}.{end}".strip(".")] = TorchCell(path, module, f"_{end}")
    return found


def paired_cells(cells: Mapping[str, str], theirs: Mapping[str, TorchCell]) -> dict[str, str]:
    """Which of PyTorch's cells each JAX cell is, from the path that each of them should have in PyTorch.

    Several cells below one nn.LSTM are its layers in the order of their numbers, the forward direction first.

    Raises:
      ValueError: an nn.LSTM has more or fewer layers and directions than there are cells, or projects its state.
    """
    inside: dict[str, list[str]] = {}
    for path, cell in theirs.items():
        inside.setdefault(cell.path, []).append(path)
    found: dict[str, str] = {}
    together: dict[str, list[str]] = {}
    for ours, wanted in cells.items():
        while wanted and wanted not in theirs and wanted not in inside:
            wanted = wanted.rpartition(".")[0]
        if wanted in theirs:
            found[ours] = wanted
        elif wanted in inside:
            together.setdefault(wanted, []).append(ours)
    for path, group in together.items():
        free = [one for one in inside[path] if one not in found.values()]
        if len(group) != len(free):
            raise ValueError(
                f"{path or 'the PyTorch model'} has {len(free)} layers and directions without a name of their own, "
                f"{', '.join(free)}; the JAX model has {len(group)} cells for them: {', '.join(group)}. Give "
                "table_from_names a name for each cell, such as {'second': 'rnn.l1'}"
            )
        found |= dict(zip(sorted(group, key=cell_place), free, strict=True))
    for ours, their in found.items():
        if getattr(theirs[their].module, "proj_size", 0):
            raise ValueError(
                f"{theirs[their].path or 'the PyTorch model'} projects its hidden state (proj_size), which {ours} of "
                "the JAX library does not: write the cell yourself, with PyTorch's names for its weights"
            )
    return found


def cell_place(path: str) -> tuple[list[int], bool]:
    """The numbers in the path of a cell, and whether it runs backwards: the order that PyTorch has."""
    return [int(number) for number in re.findall(r"\d+", path)], bool(BACKWARD.search(path.lower()))


def recurrent_entries(path: str, cell: Cell, twin: TorchCell, variables: Container[str]) -> Iterator[Entry]:
    """The entries of a cell and its PyTorch twin; none where they are not of one kind.

    Args:
      path: of the cell.
      variables: the paths of all variables of the model, to see whether the cell has biases.
    """
    ours, theirs = (f"{where}." if where else "" for where in (path, twin.path))
    keys = {name: f"{theirs}{name}{twin.end}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    if not isinstance(twin.module, (getattr(torch.nn, cell.kind), getattr(torch.nn, f"{cell.kind}Cell"))):
        return
    for key, names in (("weight_ih", cell.inputs), ("weight_hh", cell.state)):
        yield from _gates(keys[key], [f"{ours}{name}" for name in names], cell.axes)
    biases = [f"{ours}{name}" for name in cell.bias]
    if not twin.module.bias or biases[0] not in variables:
        return
    yield from _gates(keys["bias_ih"], biases, "... -> ...")
    second = f"{ours}{cell.second_bias}"
    has_second = bool(cell.second_bias) and second in variables
    if has_second and cell.kind == "RNN":
        yield Parameter(keys["bias_hh"], second)
        return
    if has_second:  # of the gate whose state is reset behind the bias
        yield Parameter(keys["bias_hh"], second, part=(2, 3))
    yield Added(keys["bias_hh"], keys["bias_ih"], (2, 3) if cell.kind == "GRU" else (1, 1))


def _gates(key: str, names: list[str], axes: str) -> Iterator[Parameter]:
    count = len(names)
    for index, name in enumerate(names):
        yield Parameter(key, name, axes, part=(index, count) if count > 1 else None)


def fold_added_biases(model: torch.nn.Module, table: tuple[Entry, ...]) -> list[str]:
    """Moves every bias that is only added to another one into that, in place, and stops it from learning.

    Returns:
      A note for each.

    Raises:
      ValueError: a part of it is not added but used by itself, and is not zero, and the table does not pair it.
    """
    parameters = dict(model.named_parameters())
    paired = {entry.theirs for entry in table if isinstance(entry, Parameter)}
    notes = []
    for entry in table:
        if not isinstance(entry, Added) or entry.theirs not in parameters or entry.to not in parameters:
            continue
        bias, target = parameters[entry.theirs], parameters[entry.to]
        rows = len(bias) * entry.blocks[0] // entry.blocks[1]
        with torch.no_grad():
            if entry.theirs not in paired and bias[rows:].any():
                raise ValueError(
                    f"{entry.theirs} must be zero from row {rows} on: the Flax model has no second bias there, as "
                    "nnx.GRUCell has none; set it to zero in PyTorch, or give the Flax cell one"
                )
            target[:rows] += bias[:rows]
            bias[:rows] = 0
        if entry.theirs in paired:
            path, _, name = entry.theirs.rpartition(".")
            model.get_submodule(path).register_forward_pre_hook(partial(_freeze_first, name, rows))
        else:
            bias.requires_grad_(False)
        where = f" up to row {rows}" if entry.theirs in paired else ""
        notes.append(
            f"{entry.theirs}: PyTorch adds it{where} to {entry.to}, Flax has one bias for both; it was moved there and "
            "does not learn, since an optimiser would move the sum twice"
        )
    return notes


def _freeze_first(name: str, rows: int, module: torch.nn.Module, inputs: object) -> None:
    """Sets the gradient of a parameter's first rows to zero. Copies of a model keep this hook, not a parameter's."""
    parameter = getattr(module, name)
    if parameter.requires_grad and not hasattr(parameter, "first_rows_are_frozen"):
        parameter.register_hook(lambda gradient: _without_first(gradient, rows))
        parameter.first_rows_are_frozen = True


def _without_first(gradient: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([torch.zeros_like(gradient[:rows]), gradient[rows:]])
