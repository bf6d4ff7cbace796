"""Layers that hide layouts: with names, and with scrambled ones. Each has a right port and a wrong one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxmodels.compare import Pair, compare, infer_table, table_from_names
from jaxmodels.convert.core import export, fit
from jaxmodels.convert.table import Entry, Parameter, Twin
from jaxmodels.convert.torch_io import to_numpy
from parity_tests.scrambling import scrambled
from parity_tests.toy_pairs import in_flax, in_torch, normal


pytestmark = pytest.mark.usefixtures("without_diagnosis")
Models = tuple[nnx.Module, torch.nn.Module]


def channels_last(inputs: Any) -> Any:
    return {name: np.moveaxis(value, 1, -1) for name, value in inputs.items()}


def convolution(axes: int, *, transposed: bool = False, groups: int = 1, turned: bool = False) -> Models:
    """A convolution of each kind; a wrong port turns the kernel round."""
    size = (3,) * axes
    kind = getattr(torch.nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
    theirs = in_torch(lambda self, x: self.c(x), c=kind(4, 4, 3, groups=groups))
    if transposed:
        layer: Any = nnx.ConvTranspose(4, 4, size, padding="VALID", transpose_kernel=turned, rngs=nnx.Rngs(0))
    else:
        layer = nnx.Conv(4, 4, size, padding="VALID", feature_group_count=groups, rngs=nnx.Rngs(0))
    spatial = tuple(range(1, axes + 1))

    def call(self: Any, x: Any) -> Any:
        return jnp.flip(self.c(jnp.flip(x, spatial)), spatial) if turned else self.c(x)

    return in_flax(call, c=layer), theirs


def recurrent(cell: type, torch_kind: type, *, wrong: bool = False) -> Models:
    """A layer over time; a wrong port forgets the hidden state."""
    layer = nnx.RNN(cell(5, 6, rngs=nnx.Rngs(0)))
    theirs = in_torch(lambda self, x: self.rnn(x)[0], rnn=torch_kind(5, 6, batch_first=True))
    if issubclass(torch_kind, torch.nn.GRU):
        with torch.no_grad():
            theirs.rnn.bias_hh_l0[12:] = 0
    return in_flax(lambda self, x: self.rnn(x if not wrong else x[:, ::-1]), rnn=layer), theirs


def attention(*, wrong: bool = False) -> Models:
    """A wrong port takes the keys for the values."""
    layer = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    theirs = in_torch(
        lambda self, x, y: self.a(x, y, y + 1)[0], a=torch.nn.MultiheadAttention(8, 2, batch_first=True)
    )
    return in_flax(lambda self, x, y: self.a(x, y, y if wrong else y + 1), a=layer), theirs


def stacked(*, wrong: bool = False) -> Models:
    """Layers in one variable each, for a scan; a wrong port begins with the last one."""

    class Stack(nnx.Module):
        def __init__(self) -> None:
            self.kernel, self.bias = nnx.Param(jnp.zeros((3, 6, 6))), nnx.Param(jnp.zeros((3, 6)))

        def __call__(self, x: jax.Array) -> jax.Array:
            def layer(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
                return jnp.tanh(x @ weights[0] + weights[1]), None

            return jax.lax.scan(layer, x, (self.kernel[...], self.bias[...]), reverse=wrong)[0]

    layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(3))

    def call(self: Any, x: Any) -> Any:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

    return in_flax(lambda self, x: self.s(x), s=Stack()), in_torch(call, layers=layers)


def grouped_transposed(*, wrong: bool = False) -> Models:
    """Flax has no such layer, so ports write it with jax.lax; a wrong port leaves the kernel as it is."""

    class Grouped(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.Param(jnp.zeros((3, 3, 2, 6)))

        def __call__(self, x: jax.Array) -> jax.Array:
            return jax.lax.conv_general_dilated(
                x,
                self.kernel[::-1, ::-1] if wrong else self.kernel[...],
                (1, 1),
                [(2, 2), (2, 2)],
                lhs_dilation=(1, 1),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=2,
            )

    theirs = in_torch(lambda self, x: self.c(x), c=torch.nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False))
    return in_flax(lambda self, x: self.c(x), c=Grouped()), theirs


def weight_norm(*, wrong: bool = False) -> Models:
    """The port has the weight itself; a wrong one scales it."""
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 6))
    ours = in_flax(lambda self, x: self.l(2 * x if wrong else x), l=nnx.Linear(6, 6, rngs=nnx.Rngs(0)))
    return ours, in_torch(lambda self, x: self.l(x), l=layer)


GROUPED = (Parameter("c.weight", "c.kernel", "(g i) o h w -> h w i (g o)", flip=2, sizes=(("g", 2),)),)
STACKED = (
    *(Parameter(f"layers.{i}.weight", "s.kernel", "o i -> block i o", block=(i, 3)) for i in range(3)),
    *(Parameter(f"layers.{i}.bias", "s.bias", "o -> block o", block=(i, 3)) for i in range(3)),
)
SEQUENCES = {"x": normal(2, 4, 5)}
# Right and wrong port, inputs, options of the pair, and a table where names do not give one.
ROWS: dict[str, tuple[Callable[[], Models], Callable[[], Models], Any, Any, tuple[Entry, ...] | None]] = {
    f"{axes}d{' transposed' if transposed else ''}{f', {groups} groups' if groups > 1 else ''}": (
        lambda axes=axes, transposed=transposed, groups=groups: convolution(
            axes, transposed=transposed, groups=groups
        ),
        lambda axes=axes, transposed=transposed, groups=groups: convolution(
            axes, transposed=transposed, groups=groups, turned=True
        ),
        {"x": normal(2, 4, *[5] * axes)},
        {"to_ours": channels_last, "output_axes": f"b c {'d h w'[-2 * axes + 1:]} -> b {'d h w'[-2 * axes + 1:]} c"},
        None,
    )
    for axes, transposed, groups in ((1, True, 1), (2, False, 2), (2, False, 4), (3, False, 1), (3, True, 1))
} | {
    "attention": (attention, lambda: attention(wrong=True), {"x": normal(2, 4, 8), "y": normal(2, 4, 8, seed=1)}, {}, None),
    "2d transposed, 2 groups": (
        grouped_transposed,
        lambda: grouped_transposed(wrong=True),
        {"x": normal(2, 4, 5, 5)},
        {"to_ours": channels_last, "output_axes": "b c h w -> b h w c"},
        GROUPED,
    ),
    "weight norm": (weight_norm, lambda: weight_norm(wrong=True), {"x": normal(4, 6)}, {}, None),
    "stacked": (stacked, lambda: stacked(wrong=True), {"x": normal(4, 6)}, {}, STACKED),
    **{
        f"{cell.__name__} and {kind.__name__}": (
            lambda cell=cell, kind=kind: recurrent(cell, kind),
            lambda cell=cell, kind=kind: recurrent(cell, kind, wrong=True),
            SEQUENCES,
            {},
            None,
        )
        for cell, kind in (
            (nnx.LSTMCell, torch.nn.LSTM),
            (nnx.OptimizedLSTMCell, torch.nn.LSTM),
            (nnx.GRUCell, torch.nn.GRU),
            (nnx.SimpleCell, torch.nn.RNN),
        )
    },
}  # fmt: skip


def pair_of(models: Models, inputs: Any, options: Any, table: tuple[Entry, ...] | None) -> Pair:
    ours, theirs = models
    table = table or table_from_names(ours, theirs)
    return Pair(name="layers", ours=ours, theirs=theirs, table=table, inputs=inputs, **options)


@pytest.mark.parametrize("name", ROWS)
def test_the_right_port_is_equal_and_the_wrong_one_different(name: str) -> None:
    torch.manual_seed(0)
    right, wrong, inputs, options, table = ROWS[name]
    learns = name == "OptimizedLSTMCell and LSTM"  # whose second bias must not move the sum twice
    result = compare(pair_of(right(), inputs, options, table), steps=2, gradients=learns)
    assert result.ok, result.divergence
    assert any("was moved there and does not learn" in note for note in result.notes) == ("Cell" in name)
    assert compare(pair_of(wrong(), inputs, options, table), gradients=False).verdict == "different"


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("2d, 2 groups", "3d", "weight norm")])
def test_inference_finds_the_layout(name: str) -> None:
    torch.manual_seed(0)
    right, _, inputs, options, table = ROWS[name]
    ours, theirs = right()
    pair = pair_of((ours, theirs), inputs, options, table)
    new = scrambled(theirs)
    found = infer_table(ours, theirs, inputs, to_ours=pair.to_ours)
    arrays = {key: to_numpy(value) for key, value in theirs.state_dict().items()}
    expected = fit(ours, pair.table, {old: arrays[name] for old, name in new.items()})
    values = fit(ours, found, arrays)
    assert values.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(values[path], value, err_msg=path)


def test_inference_folds_a_weight_that_pytorch_computes() -> None:
    ours, theirs = weight_norm()
    table = infer_table(ours, theirs, {"x": normal(4, 6)})
    assert {e.ours: (e.theirs, e.axes) for e in table if isinstance(e, Parameter)} == {
        "l.kernel": ("l.weight", "b a -> a b"),
        "l.bias": ("l.bias", "... -> ..."),
    }


@pytest.mark.parametrize("name", ["stacked", "LSTMCell and LSTM"])
def test_the_export_is_the_inverse(name: str) -> None:
    torch.manual_seed(0)
    right, _, inputs, options, table = ROWS[name]
    pair = pair_of(right(), inputs, options, table)
    arrays = {key: to_numpy(value) for key, value in pair.theirs.state_dict().items()}
    for path, value in fit(pair.ours, pair.table, arrays).items():
        module, _, own = path.rpartition(".")
        node: Any = pair.ours
        for part in module.split("."):
            node = getattr(node, part)
        getattr(node, own).set_value(jnp.asarray(value))
    found = export(pair.ours, pair.table)
    if "LSTM" in name:  # both biases are one variable
        arrays["rnn.bias_ih_l0"] = arrays["rnn.bias_ih_l0"] + arrays["rnn.bias_hh_l0"]
        arrays["rnn.bias_hh_l0"] = np.zeros_like(arrays["rnn.bias_hh_l0"])
    assert found.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_a_plain_list_of_layers_is_no_stack() -> None:
    ours = in_flax(lambda self, x: x)
    ours.layers = nnx.data([nnx.Linear(2, 3, rngs=nnx.Rngs(0)) for _ in range(2)])
    theirs = in_torch(lambda self, x: x, layers=torch.nn.ModuleList(torch.nn.Linear(2, 3) for _ in range(2)))
    table = table_from_names(ours, theirs)
    assert [(e.ours, e.theirs) for e in table if isinstance(e, Twin)] == [
        (f"layers.{i}", f"layers.{i}") for i in range(2)
    ]


def test_a_gru_with_a_second_bias_where_flax_has_none_is_refused() -> None:
    ours, theirs = recurrent(nnx.GRUCell, torch.nn.GRU)
    with torch.no_grad():
        theirs.rnn.bias_hh_l0[12:] = 1
    with pytest.raises(
        ValueError, match=r"rnn.bias_hh_l0 must be zero from row 12 on: the Flax model has no second"
    ):
        compare(pair_of((ours, theirs), SEQUENCES, {}, None))
    table = [entry for entry in table_from_names(ours, theirs) if not hasattr(entry, "output_axes")]
    arrays = {key: to_numpy(value) for key, value in theirs.state_dict().items()}
    with pytest.raises(ValueError, match=r"rnn.bias_hh_l0 must be zero from row 12 on"):
        fit(ours, table, arrays)
