"""The table of recurrent cells: gates in one weight or in one each, and PyTorch's second bias.

Flax has one bias where PyTorch adds two. The second one is `Added` to the first: both are one variable, and `compare`
lets only the first one learn.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from flax import nnx

from jaxmodels.convert.table import Added, Entry, Parameter


LSTM_GATES = ("i", "f", "g", "o")  # the order in PyTorch's weights; nnx.LSTMCell calls the second one `if_`
CELLS = (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)
TORCH_CELLS = (torch.nn.RNNBase, torch.nn.RNNCellBase)


def recurrent_entries(path: str, their_path: str, cell: Any, twin: torch.nn.Module) -> Iterator[Entry] | None:
    """The entries of a cell and its PyTorch twin; None where they are not of one kind.

    Args:
      path, their_path: of the two modules. PyTorch's may be a cell, or an nn.LSTM, nn.GRU or nn.RNN of one layer and
        one direction.
    """
    if not isinstance(cell, CELLS) or not isinstance(twin, TORCH_CELLS):
        return None
    if isinstance(twin, torch.nn.RNNBase) and (twin.num_layers > 1 or twin.bidirectional or twin.proj_size):
        return None
    end = "_l0" if isinstance(twin, torch.nn.RNNBase) else ""
    ours, theirs = (f"{where}." if where else "" for where in (path, their_path))
    keys = {name: f"{theirs}{name}{end}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    match cell, twin:
        case nnx.OptimizedLSTMCell(), torch.nn.LSTM() | torch.nn.LSTMCell():
            return _packed(f"{ours}dense_i", f"{ours}dense_h", keys, biased="dense_h", bias=twin.bias)
        case nnx.LSTMCell(), torch.nn.LSTM() | torch.nn.LSTMCell():
            return _gate_by_gate(ours, keys, bias=twin.bias)
        case nnx.GRUCell(), torch.nn.GRU() | torch.nn.GRUCell():
            return _packed(
                f"{ours}dense_i", f"{ours}dense_h", keys, biased="dense_i", bias=twin.bias, added=(2, 3)
            )
        case nnx.SimpleCell(), torch.nn.RNN() | torch.nn.RNNCell():
            return _packed(f"{ours}dense_i", f"{ours}dense_h", keys, biased="dense_i", bias=twin.bias)
    return None


def _packed(
    inputs: str,
    state: str,
    keys: Mapping[str, str],
    *,
    biased: str,
    bias: bool,
    added: tuple[int, int] = (1, 1),
) -> Iterator[Entry]:
    """All gates in one weight on both sides, in the same order."""
    yield Parameter(keys["weight_ih"], f"{inputs}.kernel", "o i -> i o")
    yield Parameter(keys["weight_hh"], f"{state}.kernel", "o i -> i o")
    if bias:
        where = inputs if inputs.endswith(biased) else state
        yield Parameter(keys["bias_ih"], f"{where}.bias")
        yield Added(keys["bias_hh"], keys["bias_ih"], added)


def _gate_by_gate(ours: str, keys: Mapping[str, str], *, bias: bool) -> Iterator[Entry]:
    """One layer per gate in Flax."""
    for source, key in (("i", "weight_ih"), ("h", "weight_hh")):
        for index, gate in enumerate(LSTM_GATES):
            name = "if_" if source + gate == "if" else source + gate
            yield Parameter(keys[key], f"{ours}{name}.kernel", "o i -> i o", part=(index, 4))
    if bias:
        for index, gate in enumerate(LSTM_GATES):
            yield Parameter(keys["bias_ih"], f"{ours}h{gate}.bias", part=(index, 4))
        yield Added(keys["bias_hh"], keys["bias_ih"])


def fold_added_biases(model: torch.nn.Module, table: tuple[Entry, ...]) -> list[str]:
    """Moves every bias that is only added to another one into that, in place, and stops it from learning.

    Returns:
      A note for each.

    Raises:
      ValueError: a part of it is not added but used by itself, and is not zero.
    """
    parameters = dict(model.named_parameters())
    notes = []
    for entry in table:
        if not isinstance(entry, Added) or entry.theirs not in parameters or entry.to not in parameters:
            continue
        bias, target = parameters[entry.theirs], parameters[entry.to]
        share, count = entry.blocks
        rows = len(bias) * share // count
        with torch.no_grad():
            if bias[rows:].any():
                raise ValueError(
                    f"{entry.theirs} must be zero from row {rows} on: the Flax model has no second bias there, as "
                    "nnx.GRUCell has none; set it to zero in PyTorch, or give the Flax cell one"
                )
            target[:rows] += bias[:rows]
            bias.zero_()
        bias.requires_grad_(False)
        notes.append(
            f"{entry.theirs}: PyTorch adds it to {entry.to}, Flax has one bias for both; it was moved there and does "
            "not learn, since an optimiser would move the sum twice"
        )
    return notes
