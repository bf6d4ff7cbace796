"""Recurrent layers of several layers and two directions in each JAX library: a right and a wrong port of each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

from jaxmodels.compare import Pair, Result, UndecidedError, compare, infer_table, table_from_names
from jaxmodels.compare.adapters import as_nnx
from jaxmodels.convert.core import fit
from jaxmodels.convert.torch_io import to_numpy
from parity_tests.adapter_pairs import KEY, vmapped
from parity_tests.scrambling import scrambled
from parity_tests.toy_pairs import in_flax, in_torch, normal


pytestmark = pytest.mark.usefixtures("without_diagnosis")
X = normal(2, 3, 5).astype(np.float32)  # batch, time, features
RNGS = nnx.Rngs(0)


def in_pytorch(kind: type = torch.nn.LSTM, **options: Any) -> torch.nn.Module:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True} | options
    return in_torch(lambda self, x: self.rnn(x)[0], rnn=kind(5, 3, **options))


def both_ways(inputs: int, *, keep_order: bool, time_major: bool) -> nnx.Module:
    """An nnx.Bidirectional; a wrong one returns the backward direction in its own order of time."""
    forward, backward = (
        nnx.RNN(nnx.OptimizedLSTMCell(inputs, 3, rngs=RNGS), time_major=time_major) for _ in range(2)
    )
    if keep_order:
        return nnx.Bidirectional(forward, backward, time_major=time_major)
    return in_flax(
        lambda self, x: jnp.concatenate([self.forward_rnn(x), self.backward_rnn(x[:, ::-1])], -1),
        forward_rnn=forward,
        backward_rnn=backward,
    )


def in_nnx(*, keep_order: bool = True, time_major: bool = False) -> nnx.Module:
    layers = (both_ways(n, keep_order=keep_order, time_major=time_major) for n in (5, 6))
    return in_flax(lambda self, x: self.rnn(x), rnn=nnx.Sequential(*layers))


class EquinoxStack(eqx.Module):
    """Cells in the order of PyTorch: each layer has one for each direction."""

    rnn: list[eqx.Module]
    keep_order: bool

    def __init__(self, cell: Any, layers: int = 2, *, keep_order: bool = True) -> None:
        sizes = (5, 5, 6, 6)[: 2 * layers]
        self.rnn = [cell(size, 3, key=jax.random.key(i)) for i, size in enumerate(sizes)]
        self.keep_order = keep_order

    def __call__(self, x: jax.Array) -> jax.Array:
        for forward, backward in zip(self.rnn[::2], self.rnn[1::2], strict=True):
            behind = run_equinox(backward, x[::-1])
            behind = behind[::-1] if self.keep_order else behind
            x = jnp.concatenate([run_equinox(forward, x), behind], -1)
        return x


def run_equinox(cell: Any, x: jax.Array) -> jax.Array:
    lstm = isinstance(cell, eqx.nn.LSTMCell)
    zeros = jnp.zeros(3, x.dtype)

    def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        state = cell(x, state)
        return state, state[0] if lstm else state

    return jax.lax.scan(step, (zeros, zeros) if lstm else zeros, x)[1]


class LinenBothWays(linen.Module):
    cell: Any
    keep_order: bool = True

    def setup(self) -> None:
        self.forward_rnn, self.backward_rnn = linen.RNN(self.cell(3)), linen.RNN(self.cell(3))

    def __call__(self, x: jax.Array) -> jax.Array:
        behind = self.backward_rnn(x, reverse=True, keep_order=self.keep_order)
        return jnp.concatenate([self.forward_rnn(x), behind], -1)


def in_linen(cell: Any, *, keep_order: bool = True) -> tuple[linen.Module, Any]:
    module = LinenBothWays(cell, keep_order)
    return module, module.init(KEY, X)


def in_haiku(*, keep_order: bool = True) -> tuple[Any, Any]:
    def call(x: jax.Array) -> jax.Array:
        forward, backward = (hk.VanillaRNN(3, name=name) for name in ("ahead", "behind"))
        ahead, _ = hk.dynamic_unroll(forward, x, forward.initial_state(2), time_major=False)
        behind, _ = hk.dynamic_unroll(backward, x[:, ::-1], backward.initial_state(2), time_major=False)
        return jnp.concatenate([ahead, behind[:, ::-1] if keep_order else behind], -1)

    transformed = hk.without_apply_rng(hk.transform(call))
    return transformed, transformed.init(KEY, X)


def one_layer(kind: type, **options: Any) -> torch.nn.Module:
    return in_pytorch(kind, num_layers=1, **options)


# The JAX side by whether it keeps the order of time, PyTorch's, and options of `Pair`.
Row = tuple[Callable[..., Any], Callable[[], torch.nn.Module], dict[str, Any]]
ROWS: dict[str, Row] = {
    "nnx, LSTM": (in_nnx, in_pytorch, {}),
    "Equinox, LSTM": (partial(EquinoxStack, eqx.nn.LSTMCell), in_pytorch, {"call_ours": vmapped}),
    "Equinox, GRU": (
        partial(EquinoxStack, eqx.nn.GRUCell, 1),
        lambda: one_layer(torch.nn.GRU),
        {"call_ours": vmapped},
    ),
    "Linen, LSTM": (
        partial(in_linen, linen.OptimizedLSTMCell),
        lambda: one_layer(torch.nn.LSTM),
        {"names": {"forward_rnn": "rnn", "backward_rnn": "rnn"}},
    ),
    "Linen, GRU": (
        partial(in_linen, linen.GRUCell),
        lambda: one_layer(torch.nn.GRU),
        {"names": {"forward_rnn": "rnn.l0", "backward_rnn": "rnn.l0_reverse"}},
    ),
    "Haiku, RNN": (
        in_haiku,
        lambda: one_layer(torch.nn.RNN, nonlinearity="relu"),
        {"names": {"ahead": "rnn.l0", "behind": "rnn.l0_reverse"}},
    ),
}
TRAINED = "Equinox, GRU"  # whose second bias is added in part, and learns in part


def verdict(
    ours: Any, theirs: torch.nn.Module, *, steps: int = 0, names: Any = None, **options: Any
) -> Result:
    table = table_from_names(ours, theirs, names)
    pair = Pair(name="rnn", ours=ours, theirs=theirs, table=table, inputs={"x": X}, **options)
    return compare(pair, steps=steps, gradients=steps > 0)


@pytest.mark.parametrize("name", ["nnx, LSTM", "Equinox, GRU", "Linen, LSTM", "Haiku, RNN"])
def test_the_right_port_is_equal_and_the_wrong_one_different(name: str) -> None:
    torch.manual_seed(0)
    ours, theirs, options = ROWS[name]
    result = verdict(ours(), theirs(), steps=2 * (name == TRAINED), **options)
    assert result.ok, (result.divergence, result.reason, result.notes)
    assert verdict(ours(keep_order=False), theirs(), **options).verdict == "different"


def test_time_may_come_first() -> None:
    torch.manual_seed(0)
    theirs = in_pytorch(batch_first=False)
    assert verdict(in_nnx(time_major=True), theirs).ok
    assert verdict(in_nnx(time_major=False), theirs).verdict == "different"


def same_weights(ours: Any, theirs: torch.nn.Module, expected: Any, new: dict[str, str], found: Any) -> None:
    """The table fills the JAX model like the expected one, whose names PyTorch no longer has."""
    arrays = {key: to_numpy(value) for key, value in theirs.state_dict().items()}
    values = fit(as_nnx(ours), found, arrays)
    right = fit(as_nnx(ours), expected, {old: arrays[key] for old, key in new.items()})
    assert values.keys() == right.keys()
    for path, value in right.items():
        np.testing.assert_array_equal(values[path], value, err_msg=path)


@pytest.mark.parametrize("name", ["nnx, LSTM", "Equinox, LSTM", "Linen, GRU", "Haiku, RNN"])
def test_inference_finds_every_cell(name: str) -> None:
    torch.manual_seed(0)
    build, in_torch_, options = ROWS[name]
    ours, theirs = build(), in_torch_()
    expected = table_from_names(ours, theirs, options.get("names"))
    new = scrambled(theirs)
    calls = {key: value for key, value in options.items() if key != "names"}
    same_weights(ours, theirs, expected, new, infer_table(ours, theirs, {"x": X}, **calls))


@pytest.mark.parametrize("wrong", [False, True])
def test_inference_orders_cells_by_computing(wrong: bool) -> None:
    """The backward direction has the first name, and is called first; a wrong port is refused."""

    def call(self: Any, x: Any) -> Any:
        behind = self.a(x[:, ::-1])
        return jnp.concatenate([self.b(x), behind if wrong else behind[:, ::-1]], -1)

    torch.manual_seed(0)
    ours = in_flax(call, **{name: nnx.RNN(nnx.OptimizedLSTMCell(5, 3, rngs=RNGS)) for name in "ab"})
    theirs = one_layer(torch.nn.LSTM)
    expected = table_from_names(ours, theirs, {"b": "rnn.l0", "a": "rnn.l0_reverse"})
    new = scrambled(theirs)
    if wrong:
        with pytest.raises(UndecidedError) as caught:
            infer_table(ours, theirs, {"x": X})
        assert not caught.value.table
    else:
        same_weights(ours, theirs, expected, new, infer_table(ours, theirs, {"x": X}))


@pytest.mark.parametrize(
    ("theirs", "names", "message"),
    [
        (
            lambda: in_pytorch(num_layers=3),
            {},
            r"rnn has 6 layers and directions .* rnn.l2_reverse; the JAX model has 4 cells for them: "
            r"rnn.layers.0.* Give table_from_names a name for each cell",
        ),
        (
            lambda: in_pytorch(proj_size=2),
            {},
            r"rnn projects its hidden state \(proj_size\), which rnn.layers.0.* write the cell yourself",
        ),
        (in_pytorch, {"rnn": "rnn.l2"}, r"not in the PyTorch model: rnn.l2"),
    ],
)
def test_errors(theirs: Callable[[], torch.nn.Module], names: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table_from_names(in_nnx(), theirs(), names)
