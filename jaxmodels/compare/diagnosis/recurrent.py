"""LSTM, GRU and plain recurrent layers, which PyTorch computes in one piece."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import Variant


LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}


def recurrent_gates(operation: Operation) -> Iterator[Variant]:
    """The order of the gates in LSTM and GRU, and their biases."""
    if operation.name not in ("lstm", "gru") or not isinstance(operation.args[2], list | tuple):
        return
    gates = "ifgo" if operation.name == "lstm" else "rzn"
    orders = (
        ("ifog", "ofgi", "igfo", "iofg", "figo", "gifo")
        if operation.name == "lstm"
        else ("zrn", "nzr", "rnz", "znr", "nrz")
    )
    for order in orders:
        places = [gates.index(gate) for gate in order]
        change = _weights(lambda w, p=places: torch.cat([w.chunk(len(p))[i] for i in p]))
        what = f"JAX orders the gates as {', '.join(order)}, PyTorch as {', '.join(gates)}"
        yield Variant("gate order", what, "PyTorch's order", change)
    yield Variant("bias missing", "JAX leaves out the biases", "adding both", _biases((0.0, 0.0)))
    what = "JAX has one of the two biases, PyTorch the sum of both"
    for factors in ((1.0, 0.0), (0.0, 1.0)):
        yield Variant("bias missing", what, "bias_ih + bias_hh", _biases(factors))
    if operation.name == "lstm":
        what = "JAX adds 1 to the forget gate, PyTorch does not"
        yield Variant("forget gate", what, "leaving it out", _biases((1.0, 1.0), forget=1.0))
    else:
        yield Variant(
            "reset gate", "JAX resets before the product, PyTorch after it", "r * (W h + b)", _reset_before
        )


def recurrent_directions(operation: Operation) -> Iterator[Variant]:
    """Which way a layer reads a sequence, and in which order its outputs come."""
    layer = LAYERS.get(operation.name)
    lstm = operation.name == "lstm"
    if layer is None or isinstance(operation.args[1], torch.Tensor) == lstm:
        return  # the arguments of a packed sequence are others
    bidirectional, batch_first = operation.args[-2:]
    time = 1 if batch_first else 0
    if bidirectional:
        what = f"JAX leaves the outputs of the {layer}'s backward direction in reversed order"
        turned = _directions(lambda forward, backward: (forward, backward.flip(time)))
        yield Variant("direction", what, "keep_order=True", turned)
        what = f"JAX joins the {layer}'s directions backward first, PyTorch forward first"
        yield Variant("direction", what, "PyTorch's order", _directions(lambda *both: both[::-1]))
        return
    for keeps_order, returned in ((True, "in the order of time"), (False, "the last step first")):
        what = f"JAX runs the {layer} backwards in time and returns its outputs {returned}"
        yield Variant("direction", what, "reverse=False", _backwards(time, keeps_order=keeps_order))


def _backwards(time: int, *, keeps_order: bool) -> Any:
    def change(function: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs, *states = function(x.flip(time), *args, **kwargs)
        return (outputs.flip(time) if keeps_order else outputs), *states

    return change


def _directions(convert: Callable[..., tuple[torch.Tensor, ...]]) -> Any:
    """The layer with other outputs of its two directions."""

    def change(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outputs, *states = function(*args, **kwargs)
        return torch.cat(convert(*outputs.chunk(2, -1)), -1), *states

    return change


def _weights(convert: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def change(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args[:2], [convert(one) for one in args[2]], *args[3:], **kwargs)

    return change


def _biases(factors: tuple[float, float], forget: float = 0.0) -> Any:
    def change(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        weights = list(args[2])
        for place, weight in enumerate(weights):
            if weight.ndim == 1:
                weights[place] = weight * factors[place % 2]
                if forget and place % 2 == 0:
                    size = len(weight) // 4
                    weights[place] = weights[place] + forget * (torch.arange(len(weight)) // size == 1)
        return function(*args[:2], weights, *args[3:], **kwargs)

    return change


def _reset_before(_function: Any, x: Any, state: Any, weights: Any, *rest: Any, **_: Any) -> Any:
    """A GRU of one layer whose reset gate multiplies the state before its product."""
    w_in, w_state, b_in, b_state = weights[:4]
    batch_first = rest[-1]
    steps = x.transpose(0, 1) if batch_first else x
    h, outputs = state[0], []
    for step in steps:
        r, z, n = (step @ w_in.T + b_in).chunk(3, -1)
        u_r, u_z, u_n = w_state.chunk(3)
        c_r, c_z, c_n = b_state.chunk(3)
        r, z = torch.sigmoid(r + h @ u_r.T + c_r), torch.sigmoid(z + h @ u_z.T + c_z)
        n = torch.tanh(n + (r * h) @ u_n.T + c_n)
        h = (1 - z) * n + z * h
        outputs.append(h)
    stacked = torch.stack(outputs)
    return (stacked.transpose(0, 1) if batch_first else stacked), h[None]
