"""Layers that hold their weights in another division on the two sides: attention and recurrent cells."""

from collections.abc import Iterator, Mapping

import torch
from flax import nnx

from jaxmodels.compare.adapters.protocol import Cell, adapter_of
from jaxmodels.compare.recurrent import TorchCell, cell_of, recurrent_entries, torch_cells
from jaxmodels.convert.table import Entry, Parameter


class Composites:
    """All such layers of two models.

    Attributes:
      ours: path of the JAX module -> the nnx.MultiHeadAttention, or how the cell keeps its weights.
      theirs: the same for PyTorch; the cells of an nn.LSTM have the paths of `torch_cells`.
    """

    def __init__(self, model: nnx.Module, torch_modules: Mapping[str, torch.nn.Module]) -> None:
        flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
        self.variables = {".".join(map(str, path)) for path, _ in flat}
        self.ours: dict[str, nnx.MultiHeadAttention | Cell] = {}
        adapter = adapter_of(model)
        for path, module in nnx.iter_modules(model):
            name = ".".join(map(str, path))
            cell = adapter.cell(name, self.variables) if adapter else cell_of(module)
            if cell is not None:
                self.ours[name] = cell
            elif isinstance(module, nnx.MultiHeadAttention):
                self.ours[name] = module
        self.cells = torch_cells(torch_modules)
        self.theirs: dict[str, torch.nn.MultiheadAttention | TorchCell] = {
            path: module
            for path, module in torch_modules.items()
            if isinstance(module, torch.nn.MultiheadAttention)
        } | self.cells

    def entries(self, path: str, their_path: str) -> list[Entry]:
        """What the table says of two of them; empty where they are not of one kind."""
        match self.ours.get(path), self.theirs.get(their_path):
            case nnx.MultiHeadAttention() as ours, torch.nn.MultiheadAttention() as theirs:
                return list(_attention(path, their_path, theirs, ours))
            case Cell() as ours, TorchCell() as theirs:
                return list(recurrent_entries(path, ours, theirs, self.variables))
        return []


def _attention(
    path: str, their_path: str, twin: torch.nn.MultiheadAttention, module: nnx.MultiHeadAttention
) -> Iterator[Parameter]:
    """Queries, keys and values of one packed weight, or of three where their widths differ."""
    ours, theirs = (f"{where}." if where else "" for where in (path, their_path))
    packed = twin.in_proj_weight is not None
    for index, (name, letter) in enumerate((("query", "q"), ("key", "k"), ("value", "v"))):
        part = (index, 3)
        key = f"{theirs}in_proj_weight" if packed else f"{theirs}{letter}_proj_weight"
        own = f"{ours}{name}."
        yield Parameter(key, f"{own}kernel", "(h d) i -> i h d", part=part if packed else None)
        if getattr(module, name).bias is not None:
            yield Parameter(f"{theirs}in_proj_bias", f"{own}bias", "(h d) -> h d", part=part)
    yield Parameter(f"{theirs}out_proj.weight", f"{ours}out.kernel", "o (h d) -> h d o")
    if module.out.bias is not None:
        yield Parameter(f"{theirs}out_proj.bias", f"{ours}out.bias")
