"""`infer_table` on pairs with scrambled names: the exact table, one that is proven equivalent, or a refusal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

from jaxmodels.compare import Pair, Undecided, UndecidedError, compare, infer_table, read_map, write_map
from jaxmodels.convert.core import fit
from jaxmodels.convert.table import Added, Entry, Parameter, Tied, Twin
from jaxmodels.convert.torch_io import to_numpy
from parity_tests.scrambling import scrambled
from parity_tests.small_pairs import tiny_pair
from parity_tests.toy_pairs import CHANNELS_LAST, in_flax, in_torch, linear, normal


RNGS = nnx.Rngs(0)


def sources(table: tuple[Entry, ...]) -> dict[str, str]:
    """Which PyTorch parameter each variable gets."""
    return {entry.ours: entry.theirs for entry in table if isinstance(entry, Parameter)}


def mlp(*, swapped: bool = False) -> tuple[nnx.Module, torch.nn.Module]:
    """Three square layers, which no shape tells apart."""

    def ours(self: Any, x: Any) -> Any:
        first, second = (self.two, self.one) if swapped else (self.one, self.two)
        return self.three(jax.nn.relu(second(jnp.tanh(first(x)))))

    def theirs(self: Any, x: Any) -> Any:
        return self.three(F.relu(self.two(torch.tanh(self.one(x)))))

    layers = {name: linear(6, 6) for name in ("one", "two", "three")}
    return in_flax(ours, **layers), in_torch(theirs, **{name: torch.nn.Linear(6, 6) for name in layers})


def conv_net() -> tuple[nnx.Module, torch.nn.Module]:
    """Both in training mode, as they are made: they are paired in evaluation mode."""
    norm = nnx.BatchNorm(4, epsilon=1e-5, rngs=RNGS)
    ours = in_flax(
        lambda self, x: self.b(jax.nn.relu(self.n(self.a(x)))),
        a=nnx.Conv(4, 4, (3, 3), padding=1, rngs=RNGS),
        n=norm,
        b=nnx.ConvTranspose(4, 4, (3, 3), padding="VALID", rngs=RNGS),
    )
    theirs = in_torch(
        lambda self, x: self.b(F.relu(self.n(self.a(x)))),
        a=torch.nn.Conv2d(4, 4, 3, padding=1),
        n=torch.nn.BatchNorm2d(4),
        b=torch.nn.ConvTranspose2d(4, 4, 3),
    )
    return ours, theirs


def split_heads(x: Any, heads: int) -> Any:
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def attend(q: Any, k: Any, v: Any, *, heads: int = 2) -> Any:
    """Attention of either library over (batch, positions, features), with a mask that only looks back."""
    softmax, ones = (torch.softmax, torch.ones) if isinstance(q, torch.Tensor) else (jax.nn.softmax, jnp.ones)
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    logits = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    past = ones((q.shape[-2], q.shape[-2])) > 0
    past = past.tril() if isinstance(q, torch.Tensor) else jnp.tril(past)
    logits = logits * past - 1e4 * ~past
    mixed = (softmax(logits, -1) @ v).swapaxes(-2, -3)
    return mixed.reshape(*mixed.shape[:-2], -1)


def attention(*, order: str = "qkv") -> tuple[nnx.Module, torch.nn.Module]:
    """Four square layers, three of which get the same input; PyTorch calls them in another order."""

    def ours(self: Any, x: Any) -> Any:
        return x + self.out(attend(self.q(x), self.k(x), self.v(x)))

    def theirs(self: Any, x: Any) -> Any:
        found = {name: getattr(self, name)(x) for name in order}
        return x + self.out(attend(**found))

    names = ("q", "k", "v", "out")
    torch_layers = {name: torch.nn.Linear(8, 8) for name in names}
    return in_flax(ours, **{name: linear(8, 8) for name in names}), in_torch(theirs, **torch_layers)


def fused(*, per_head: bool) -> tuple[nnx.Module, torch.nn.Module]:
    """Three layers in JAX, and one in PyTorch: (q, k, v) of all heads, or head by head."""

    def theirs(self: Any, x: Any) -> Any:
        y = self.qkv(x)
        if per_head:
            y = y.reshape(*y.shape[:-1], 2, 3, 4).transpose(-2, -3).reshape(*y.shape)
        return x + self.out(attend(*y.chunk(3, -1)))

    def ours(self: Any, x: Any) -> Any:
        return x + self.out(attend(self.q(x), self.k(x), self.v(x)))

    layers = {name: linear(8, 8) for name in ("q", "k", "v", "out")}
    torch_layers = {"qkv": torch.nn.Linear(8, 24), "out": torch.nn.Linear(8, 8)}
    return in_flax(ours, **layers), in_torch(theirs, **torch_layers)


def fused_here() -> tuple[nnx.Module, torch.nn.Module]:
    """One layer in JAX and three in PyTorch."""

    def ours(self: Any, x: Any) -> Any:
        return x + self.out(attend(*jnp.split(self.qkv(x), 3, -1)))

    layers = {name: torch.nn.Linear(8, 8) for name in ("q", "k", "v", "out")}
    theirs = in_torch(lambda self, x: x + self.out(attend(self.q(x), self.k(x), self.v(x))), **layers)
    return in_flax(ours, qkv=linear(8, 24), out=linear(8, 8)), theirs


def tied() -> tuple[nnx.Module, torch.nn.Module]:
    ours = in_flax(
        lambda self, ids: self.e.attend(self.d(self.e(ids))), e=nnx.Embed(8, 8, rngs=RNGS), d=linear(8, 8)
    )
    theirs = in_torch(
        lambda self, ids: self.h(self.d(self.e(ids))),
        e=torch.nn.Embedding(8, 8),
        d=torch.nn.Linear(8, 8),
        h=torch.nn.Linear(8, 8, bias=False),
    )
    theirs.h.weight = theirs.e.weight
    return ours, theirs


def two_outputs() -> tuple[nnx.Module, torch.nn.Module]:
    """Outputs of one shape, which the two sides return and compute in another order."""
    ours = in_flax(lambda self, x: {"b": self.b(x), "a": self.a(x)}, a=linear(6, 6), b=linear(6, 6))
    theirs = in_torch(
        lambda self, x: {"a": self.a(x), "b": self.b(x)}, a=torch.nn.Linear(6, 6), b=torch.nn.Linear(6, 6)
    )
    return ours, theirs


IDS = {"ids": np.arange(12).reshape(2, 6) * 5 % 8}
PAIRS: dict[str, tuple[Callable[[], tuple[nnx.Module, torch.nn.Module]], dict[str, Any]]] = {
    "mlp": (mlp, {"x": normal(5, 6)}),
    "mlp in another order": (lambda: mlp(swapped=True), {"x": normal(5, 6)}),
    "conv_net": (conv_net, {"x": normal(2, 4, 5, 5)}),
    "attention": (attention, {"x": normal(2, 5, 8)}),
    "attention in another order": (lambda: attention(order="vqk"), {"x": normal(2, 5, 8)}),
    "fused": (lambda: fused(per_head=False), {"x": normal(2, 5, 8)}),
    "fused per head": (lambda: fused(per_head=True), {"x": normal(2, 5, 8)}),
    "fused in JAX": (fused_here, {"x": normal(2, 5, 8)}),
    "tied": (tied, IDS),
    "two outputs": (two_outputs, {"x": normal(5, 6)}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_table_is_found_and_proven(name: str) -> None:
    torch.manual_seed(0)
    build, inputs = PAIRS[name]
    ours, theirs = build()
    scrambled(theirs)
    axes = CHANNELS_LAST if name == "conv_net" else {}
    table = infer_table(ours, theirs, inputs, **axes)
    pair = Pair(name=name, ours=ours, theirs=theirs, table=table, inputs=inputs, **axes)
    result = compare(pair, steps=1)
    assert result.ok, result.divergence


def wrong_mlp() -> tuple[nnx.Module, torch.nn.Module]:
    """The port forgets the first activation."""
    _, theirs = mlp()
    ours = in_flax(
        lambda self, x: self.three(jax.nn.relu(self.two(self.one(x)))),
        **{name: linear(6, 6) for name in ("one", "two", "three")},
    )
    return ours, theirs


def test_a_wrong_port_has_its_table_by_names_and_is_called_different() -> None:
    ours, theirs = wrong_mlp()
    inputs = {"x": normal(5, 6)}
    table = infer_table(ours, theirs, inputs)
    assert sources(table) == {
        f"{name}.{own}": f"{name}.{other}"
        for name in ("one", "two", "three")
        for own, other in (("kernel", "weight"), ("bias", "bias"))
    }
    pair = Pair(name="wrong", ours=ours, theirs=theirs, table=table, inputs=inputs)
    result = compare(pair, gradients=False)
    assert result.divergence is not None
    assert result.divergence.detail == "in the code of (model) after one, before two"


def test_a_wrong_port_with_scrambled_names_is_refused_from_the_fault_on() -> None:
    ours, theirs = wrong_mlp()
    new = scrambled(theirs)
    with pytest.raises(
        UndecidedError, match=r"outputs of the two models differ by .* names do not tell"
    ) as caught:
        infer_table(ours, theirs, {"x": normal(5, 6)})
    assert sources(caught.value.table) == {"one.kernel": new["one.weight"], "one.bias": new["one.bias"]}
    weights = [one for one in caught.value.undecided if "two.kernel" in one.ours]
    assert sorted(weights[0].ours) == ["three.kernel", "two.kernel"]
    assert sorted(weights[0].theirs) == sorted(new[f"{name}.weight"] for name in ("two", "three"))


def unused(*names: str) -> tuple[nnx.Module, torch.nn.Module]:
    """Layers of which only the first takes part in the outputs."""
    ours = in_flax(lambda self, x: self.used(x), used=linear(6, 6), **{name: linear(6, 4) for name in names})
    theirs = in_torch(
        lambda self, x: self.used(x),
        used=torch.nn.Linear(6, 6),
        **{name: torch.nn.Linear(6, 4) for name in names},
    )
    return ours, theirs


def test_layers_that_take_no_part_have_only_their_names() -> None:
    ours, theirs = unused("left", "right")
    inputs = {"x": normal(5, 6)}
    assert sources(infer_table(ours, theirs, inputs))["left.kernel"] == "left.weight"
    scrambled(theirs)
    with pytest.raises(
        UndecidedError, match="no output depends on them, and their names do not tell which is which"
    ):
        infer_table(ours, theirs, inputs)


@pytest.mark.parametrize("names", [("left", "right"), ("a", "b")])
def test_layers_that_could_be_exchanged_have_only_their_names(names: tuple[str, str]) -> None:
    """Their outputs are added, so that both orders are right, and one of them is the author's."""

    def call(self: Any, x: Any) -> Any:
        return getattr(self, names[1])(x) + getattr(self, names[0])(x)

    ours = in_flax(call, **{name: linear(6, 6) for name in names})
    theirs = in_torch(call, **{name: torch.nn.Linear(6, 6) for name in names})
    inputs = {"x": normal(5, 6)}
    table = infer_table(ours, theirs, inputs)
    assert {a.partition(".")[0] == b.partition(".")[0] for a, b in sources(table).items()} == {True}
    scrambled(theirs)
    with pytest.raises(UndecidedError, match=f"{names[0]}.kernel, .*exchanging them changes no output"):
        infer_table(ours, theirs, inputs)


def test_what_one_side_lacks_on_purpose_keeps_its_value() -> None:
    def call(self: Any, x: Any) -> Any:
        return self.layer(x) + getattr(self, "extra", 0.0)

    ours, theirs = in_flax(call, layer=linear(6, 6)), in_torch(call, layer=torch.nn.Linear(6, 6))
    theirs.extra = torch.nn.Parameter(torch.zeros(6))
    ours.layer.unused = nnx.Param(jnp.ones(6))
    inputs, lacking = {"x": normal(5, 6)}, {"only_theirs": ("extra",), "only_ours": ("layer.unused",)}
    table = infer_table(ours, theirs, inputs, **lacking)
    assert sources(table) == {"layer.kernel": "layer.weight", "layer.bias": "layer.bias"}
    with pytest.raises(ValueError, match="only_ours names 'unused', which the Flax model does not have"):
        infer_table(ours, theirs, inputs, only_ours=("unused",))
    theirs.extra.data += 1  # then the outputs differ, and nothing is proven by them
    with pytest.raises(UndecidedError):
        infer_table(ours, theirs, inputs)


def test_parameters_without_a_counterpart_are_listed() -> None:
    ours, theirs = unused()
    theirs.extra = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(
        UndecidedError, match="nothing in JAX and extra in PyTorch: the other side has no counterpart"
    ):
        infer_table(ours, theirs, {"x": normal(5, 6)})


def test_what_is_undecided_is_written_to_a_file_that_people_edit(tmp_path: Path) -> None:
    table = (
        Twin("a", "b", None),
        Parameter("a.weight", "b.kernel", "(y part z) i -> i (y z)", part=(1, 3), sizes=(("y", 2),)),
        Parameter("c.weight", "d", "o i w -> w i o", flip=1, block=(0, 2)),
        Added("l.bias_hh", "l.bias_ih", (2, 3)),
        Tied("h.weight", "e.weight"),
        Twin("c", "d"),
    )
    path = tmp_path / "map.toml"
    write_map(path, table)
    assert sorted(map(repr, read_map(path))) == sorted(map(repr, table))
    write_map(path, table, [Undecided(("q.kernel", "k.kernel"), ("1.weight", "2.weight"), "nobody knows")])
    with pytest.raises(ValueError, match=r"still has 1 \[\[undecided\]\] entries.*\n  q.kernel, k.kernel"):
        read_map(path)
    path.write_text(path.read_text().rpartition("[[undecided]]")[0] + '[[parameter]]\ntheirs = "x"\n')
    with pytest.raises(ValueError, match=r"each \[\[parameter\]\] must have ours and theirs"):
        read_map(path)
    path.write_text("[[parameters]]\n")
    with pytest.raises(
        ValueError, match="must hold only parameter, added, tied, twin and undecided; it has parameters"
    ):
        read_map(path)
    path.write_text("axes = [")
    with pytest.raises(ValueError, match="must be a TOML file"):
        read_map(path)


def test_a_whole_model_with_scrambled_names_has_its_exact_table() -> None:
    pair = tiny_pair("glom")
    new = scrambled(pair.theirs)
    calls = {name: getattr(pair, name) for name in ("to_ours", "call_ours", "call_theirs")}
    table = infer_table(pair.ours, pair.theirs, pair.inputs, **calls)
    assert sources(table) == {ours: new[theirs] for ours, theirs in sources(pair.table).items()}
    # The layouts are the same ones, whatever their axes are called.
    arrays = {name: to_numpy(value) for name, value in pair.theirs.named_parameters()}
    parameters = [entry for entry in pair.table if isinstance(entry, Parameter)]
    expected = fit(pair.ours, parameters, {entry.theirs: arrays[new[entry.theirs]] for entry in parameters})
    found = fit(pair.ours, table, arrays)
    assert all(np.array_equal(found[path], value) for path, value in expected.items())
