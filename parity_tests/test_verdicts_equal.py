"""Correct ports that are written differently are equal: order of inputs, axes, layouts, structures, switches."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from jaxmodels.compare import Pair, Result, compare
from jaxmodels.convert.table import Parameter
from parity_tests.toy_pairs import CHANNELS_LAST, in_flax, in_torch, linear, normal, one_linear, toy


RNGS = nnx.Rngs(0)


def assert_equal(pair: Pair, **options: Any) -> Result:
    result = compare(pair, **{"steps": 1, **options})
    assert result.ok, (result.divergence, result.reason)
    return result


class TestInputs:
    def test_keep_the_order_of_the_dict(self) -> None:
        """JAX sorts the keys of a dict; these two would change places."""
        assert_equal(
            toy(
                in_flax(lambda self, x, context: self.q(x) - context, q=linear(8, 8)),
                in_torch(lambda self, x, context: self.q(x) - context, q=nn.Linear(8, 8)),
                inputs={"x": normal(4, 8), "context": normal(4, 8, seed=1)},
            )
        )

    def test_reach_the_parameters_of_their_names(self) -> None:
        class Ours(nnx.Module):
            def __init__(self) -> None:
                self.q = linear(8, 8)

            def __call__(self, x, context, *, shift, bias):
                return self.q(x) * shift - context + bias

        class Theirs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.q = nn.Linear(8, 8)

            def forward(self, context, x, *, bias, shift):
                return self.q(x) * shift - context + bias

        names = ("x", "context", "shift", "bias")
        inputs = {name: normal(4, 8, seed=seed) for seed, name in enumerate(names)}
        assert_equal(toy(Ours(), Theirs(), inputs=inputs))

    def test_integers_have_no_gradient(self) -> None:
        """A tied embedding: PyTorch has two names for one weight, Flax one."""
        theirs = in_torch(
            lambda self, ids: self.head(self.embed(ids)),
            embed=nn.Embedding(11, 8),
            head=nn.Linear(8, 11, bias=False),
        )
        theirs.head.weight = theirs.embed.weight
        ours = in_flax(
            lambda self, ids: self.embed.attend(self.embed(ids)), embed=nnx.Embed(11, 8, rngs=RNGS)
        )
        result = assert_equal(toy(ours, theirs, inputs={"ids": np.arange(9)[None]}))
        assert [check.name for check in result.gradients] == ["embed.weight"]

    def test_tied_weights_are_compared_whichever_name_comes_first(self) -> None:
        class Theirs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(8, 11, bias=False)
                self.embed = nn.Embedding(11, 8)
                self.embed.weight = self.head.weight

            def forward(self, ids):
                return self.head(self.embed(ids))

        ours = in_flax(
            lambda self, ids: self.embed.attend(self.embed(ids)), embed=nnx.Embed(11, 8, rngs=RNGS)
        )
        result = assert_equal(toy(ours, Theirs(), inputs={"ids": np.arange(9)[None]}))
        assert [check.name for check in result.gradients] == ["embed.weight"]


def convolutional(axes: int, *, epsilon: float = 1e-5, channels: int = 4, size: int = 6) -> Pair:
    """A block of convolution, BatchNorm and pooling, and a linear head; images in `axes` dimensions."""
    torch.manual_seed(0)

    class TorchBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = getattr(nn, f"Conv{axes}d")(3, channels, 3, padding=1)
            self.norm = getattr(nn, f"BatchNorm{axes}d")(channels)
            self.pool = getattr(nn, f"MaxPool{axes}d")(2)

        def forward(self, x):
            return self.pool(torch.relu(self.norm(self.conv(x))))

    class FlaxBlock(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Conv(3, channels, (3,) * axes, padding=1, rngs=RNGS)
            self.norm = nnx.BatchNorm(channels, epsilon=epsilon, rngs=RNGS)

        def __call__(self, x):
            return nnx.max_pool(jax.nn.relu(self.norm(self.conv(x))), (2,) * axes, strides=(2,) * axes)

    theirs = in_torch(
        lambda self, x: self.head(self.block(x).flatten(2).mean(-1)),
        block=TorchBlock(),
        head=nn.Linear(channels, 2),
    )
    ours = in_flax(
        lambda self, x: self.head(self.block(x).reshape(2, -1, channels).mean(1)),
        block=FlaxBlock(),
        head=linear(channels, 2),
    )
    with torch.no_grad():
        theirs.block.norm.running_mean.normal_()
        theirs.block.norm.running_var.uniform_(0.5, 2)
        theirs.block.norm.weight.normal_()
    return toy(ours, theirs, normal(2, 3, *(size,) * axes), **CHANNELS_LAST)


class TestAxes:
    @pytest.mark.parametrize("axes", [1, 2, 3])
    def test_blocks_of_convolutions(self, axes: int) -> None:
        result = assert_equal(convolutional(axes))
        compared = {check.name for check in result.layers if check.error < 1}
        assert compared == {"block", "block.conv", "block.norm", "head"}
        assert not result.not_compared

    def test_channels_as_many_as_pixels(self) -> None:
        assert_equal(convolutional(2, channels=8, size=8))

    def test_a_wrong_epsilon_inside_a_block_is_found(self) -> None:
        result = compare(convolutional(2, epsilon=1e-3), gradients=False)
        assert result.divergence is not None
        assert result.divergence.layer == "block.norm"

    def test_norm_of_groups_of_channels(self) -> None:
        ours = in_flax(
            lambda self, x: self.norm(self.conv(x)),
            conv=nnx.Conv(3, 8, (3, 3), padding=1, rngs=RNGS),
            norm=nnx.GroupNorm(8, 2, epsilon=1e-5, use_fast_variance=False, rngs=RNGS),
        )
        theirs = in_torch(
            lambda self, x: self.norm(self.conv(x)),
            conv=nn.Conv2d(3, 8, 3, padding=1),
            norm=nn.GroupNorm(2, 8),
        )
        assert_equal(toy(ours, theirs, normal(2, 3, 6, 6), output_axes="b c h w -> b h w c", **CHANNELS_LAST))

    def test_one_dimension(self) -> None:
        ours = in_flax(lambda self, x: self.conv(x), conv=nnx.Conv(4, 8, (3,), padding=1, rngs=RNGS))
        theirs = in_torch(lambda self, x: self.conv(x), conv=nn.Conv1d(4, 8, 3, padding=1))
        assert_equal(toy(ours, theirs, normal(2, 4, 9), output_axes="b c l -> b l c", **CHANNELS_LAST))

    def test_outputs_without_a_pattern(self) -> None:
        ours = in_flax(lambda self, x: self.conv(x), conv=nnx.Conv(3, 8, (3, 3), padding=1, rngs=RNGS))
        theirs = in_torch(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 8, 3, padding=1))
        result = assert_equal(toy(ours, theirs, normal(2, 3, 5, 6), **CHANNELS_LAST), gradients=False)
        (note,) = result.notes
        assert "channels, on axis 1, are compared with the last axis" in note

    @pytest.mark.parametrize("repeated", [False, True])
    def test_positions_for_each_example(self, repeated: bool) -> None:
        """PyTorch embeds the positions once, JAX with a leading 1 or for every example."""
        ours = in_flax(
            lambda self, ids: (
                self.words(ids)
                + self.places(jnp.broadcast_to(jnp.arange(9), ids.shape if repeated else (1, 9)))
            ),
            words=nnx.Embed(11, 8, rngs=RNGS),
            places=nnx.Embed(9, 8, rngs=RNGS),
        )
        theirs = in_torch(
            lambda self, ids: self.words(ids) + self.places(torch.arange(9)),
            words=nn.Embedding(11, 8),
            places=nn.Embedding(9, 8),
        )
        assert_equal(toy(ours, theirs, inputs={"ids": np.arange(18).reshape(2, 9) % 11}), gradients=False)

    @pytest.mark.parametrize("sizes", [(3, 4, 8), (4, 4, 8)])
    def test_axes_that_one_side_exchanges_or_merges(self, sizes: tuple[int, ...]) -> None:
        ours = in_flax(lambda self, x: self.b(self.a(x)), a=linear(8, 8), b=linear(8, 8))
        theirs = in_torch(
            lambda self, x: self.b(self.a(x.transpose(0, 1)).transpose(0, 1).flatten(0, 1)).reshape(sizes),
            a=nn.Linear(8, 8),
            b=nn.Linear(8, 8),
        )
        assert_equal(toy(ours, theirs, normal(*sizes)), gradients=False)

    def test_an_output_that_jax_crops_afterwards(self) -> None:
        kernel: dict[str, Any] = {"strides": (2, 2), "padding": "VALID", "rngs": RNGS}
        ours = in_flax(
            lambda self, x: self.up(x)[:, 1:-1, 1:-1], up=nnx.ConvTranspose(3, 4, (4, 4), **kernel)
        )
        theirs = in_torch(lambda self, x: self.up(x), up=nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1))
        assert_equal(toy(ours, theirs, normal(1, 3, 6, 6), **CHANNELS_LAST), gradients=False)


class TestWorkDividedDifferently:
    def test_a_residual_inside_and_outside(self) -> None:
        ours = in_flax(
            lambda self, x: self.head(x + self.block(x)),
            block=in_flax(lambda self, x: self.inner(x), inner=linear(8, 8)),
            head=linear(8, 4),
        )
        theirs = in_torch(
            lambda self, x: self.head(self.block(x)),
            block=in_torch(lambda self, x: x + self.inner(x), inner=nn.Linear(8, 8)),
            head=nn.Linear(8, 4),
        )
        assert_equal(toy(ours, theirs, normal(4, 8)))

    def test_one_layer_called_in_another_order(self) -> None:
        def in_reverse(self, x):
            second = self.layer(x + 1)
            return self.layer(x) * second

        ours = in_flax(in_reverse, layer=linear(8, 8))
        theirs = in_torch(lambda self, x: self.layer(x) * self.layer(x + 1), layer=nn.Linear(8, 8))
        (note,) = assert_equal(toy(ours, theirs, normal(4, 8)), gradients=False).notes
        assert "called in another order" in note


class TestLayouts:
    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("axes", [1, 2, 3])
    def test_transposed_convolution(self, axes: int, transposed: bool) -> None:
        kernel: dict[str, Any] = {"strides": (2,) * axes, "padding": "VALID", "rngs": RNGS}
        up = nnx.ConvTranspose(3, 4, (2, 3, 4)[:axes], transpose_kernel=transposed, **kernel)
        theirs = getattr(nn, f"ConvTranspose{axes}d")(3, 4, (2, 3, 4)[:axes], stride=2)
        pair = toy(
            in_flax(lambda self, x: self.up(x), up=up),
            in_torch(lambda self, x: self.up(x), up=theirs),
            normal(1, 3, *(5,) * axes),
            **CHANNELS_LAST,
        )
        assert_equal(pair)

    def test_a_kernel_that_is_not_turned_round_is_found(self) -> None:
        up = nnx.ConvTranspose(3, 4, (4, 4), padding="VALID", rngs=RNGS)
        pair = toy(
            in_flax(lambda self, x: self.up(x), up=up),
            in_torch(lambda self, x: self.up(x), up=nn.ConvTranspose2d(3, 4, 4)),
            normal(1, 3, 5, 5),
            **CHANNELS_LAST,
        )
        table = tuple(e._replace(flip=0) if isinstance(e, Parameter) else e for e in pair.table)
        result = compare(
            Pair(
                name="",
                ours=pair.ours,
                theirs=pair.theirs,
                table=table,
                inputs=pair.inputs,
                to_ours=pair.to_ours,
            )
        )
        assert result.divergence is not None
        assert result.divergence.layer == "up"

    @pytest.mark.parametrize("width", [8, 6], ids=["packed weight", "three weights"])
    def test_multi_head_attention(self, width: int) -> None:
        ours = in_flax(
            lambda self, x, y: self.attend(x, y),
            attend=nnx.MultiHeadAttention(2, 8, in_kv_features=width, decode=False, rngs=RNGS),
        )
        theirs = in_torch(
            lambda self, x, y: self.attend(x, y, y)[0],
            attend=nn.MultiheadAttention(8, 2, kdim=width, vdim=width, dropout=0.3, batch_first=True),
        )
        nn.init.normal_(theirs.attend.in_proj_bias)
        result = assert_equal(toy(ours, theirs, normal(2, 5, 8), normal(2, 7, width)))
        assert {check.name for check in result.gradients} == dict(theirs.named_parameters()).keys()

    def test_keys_in_place_of_values_are_found(self) -> None:
        ours = in_flax(
            lambda self, x: self.attend(x), attend=nnx.MultiHeadAttention(2, 8, decode=False, rngs=RNGS)
        )
        theirs = in_torch(
            lambda self, x: self.attend(x, x, x)[0], attend=nn.MultiheadAttention(8, 2, batch_first=True)
        )
        pair = toy(ours, theirs, normal(2, 5, 8))
        exchanged = {"attend.key.kernel": "attend.value.kernel", "attend.value.kernel": "attend.key.kernel"}
        table = tuple(
            e._replace(ours=exchanged.get(e.ours, e.ours)) if isinstance(e, Parameter) else e
            for e in pair.table
        )
        wrong = Pair(name="", ours=ours, theirs=theirs, table=table, inputs=pair.inputs)
        assert compare(wrong, gradients=False).verdict == "different"

    def test_batch_norm_and_its_statistics(self) -> None:
        theirs = in_torch(lambda self, x: self.norm(x), norm=nn.BatchNorm1d(8))
        theirs.norm.running_mean.normal_()
        ours = in_flax(
            lambda self, x: self.norm(x), norm=nnx.BatchNorm(8, rngs=RNGS)
        )  # as it is built: training
        assert_equal(toy(ours, theirs, normal(4, 8)))

    def test_a_linear_layer_as_a_convolution_of_one_pixel(self) -> None:
        ours = in_flax(lambda self, x: self.q(x), q=linear(3, 8))
        theirs = in_torch(lambda self, x: self.q(x), q=nn.Conv2d(3, 8, 1))
        assert_equal(toy(ours, theirs, normal(2, 3, 5, 6), **CHANNELS_LAST))

    def test_sequentials(self) -> None:
        ours = in_flax(
            lambda self, x: self.body(x), body=nnx.Sequential(linear(8, 8), jax.nn.relu, linear(8, 4))
        )
        theirs = in_torch(
            lambda self, x: self.body(x), body=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        )
        result = assert_equal(toy(ours, theirs, normal(4, 8)), gradients=False)
        assert {check.name for check in result.layers} == {"body", "body.0", "body.2"}

    @pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "parametrizations.weight_norm"])
    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
    def test_weights_computed_from_others(self, norm: str) -> None:
        wrap: Any = nn.utils
        for part in norm.split("."):
            wrap = getattr(wrap, part)
        ours = in_flax(lambda self, x: self.q(x), q=linear(8, 8))
        theirs = in_torch(lambda self, x: self.q(x), q=wrap(nn.Linear(8, 8)))
        before = {key: value.clone() for key, value in theirs.state_dict().items()}
        (note,) = assert_equal(toy(ours, theirs, normal(4, 8))).notes
        assert note.startswith("q: PyTorch computes its weight from other parameters")
        assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())

    def test_buffers_that_flax_computes(self) -> None:
        theirs = in_torch(lambda self, x: self.q(x) * self.mask, q=nn.Linear(8, 8))
        theirs.register_buffer("mask", torch.tril(torch.ones(8, 8)))
        ours = in_flax(lambda self, x: self.q(x) * jnp.tril(jnp.ones((8, 8), x.dtype)), q=linear(8, 8))
        assert_equal(toy(ours, theirs, normal(8, 8)))

    def test_frozen_parameters_have_gradients_here(self) -> None:
        pair = one_linear()
        pair.theirs.requires_grad_(False)
        assert_equal(pair)
        assert not any(parameter.requires_grad for parameter in pair.theirs.parameters())


@dataclass
class Answer:
    y: torch.Tensor
    cache: None = None


class TestOutputs:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda y: (y, None),
            lambda y: (y, y.argmax(-1)),
            lambda y: {"y": y},
            lambda y: {"b": (y, [y + 1]), "a": None, "B": y > 0},
        ],
        ids=["none", "integers", "dict", "nested"],
    )
    def test_of_any_structure(self, wrap: Any) -> None:
        assert_equal(one_linear(wrap, wrap))

    def test_of_a_dataclass(self) -> None:
        assert_equal(one_linear(lambda y: {"y": y}, Answer))

    def test_complex_numbers(self) -> None:
        assert_equal(one_linear(jnp.fft.fft, torch.fft.fft))
        wrong = one_linear(lambda y: jnp.fft.fft(y).conj(), torch.fft.fft)
        assert compare(wrong, gradients=False).verdict == "different"

    def test_integers_alone(self) -> None:
        result = assert_equal(one_linear(lambda y: y.argmax(-1), lambda y: y.argmax(-1), rows=64))
        assert not result.gradients
        assert "no gradient was compared" in result.notes[0]

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (lambda y: y.argmin(-1), lambda y: y.argmax(-1)),
            (lambda y: y > 0.5, lambda y: y > 0),
            (lambda y: (y, y.argmin(-1)), lambda y: (y, y.argmax(-1))),
        ],
        ids=["integers", "booleans", "beside floats"],
    )
    def test_wrong_choices(self, ours: Any, theirs: Any, dtype: Any) -> None:
        result = compare(one_linear(ours, theirs, rows=64), dtype=dtype)
        assert result.verdict == "different"


class TestDropout:
    def test_as_constructed(self) -> None:
        ours = in_flax(
            lambda self, x: self.drop(self.q(x)), q=linear(8, 8), drop=nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        )
        theirs = in_torch(lambda self, x: self.drop(self.q(x)), q=nn.Linear(8, 8), drop=nn.Dropout(0.5))
        assert_equal(toy(ours, theirs, normal(4, 8)))
        assert theirs.training
        assert not ours.drop.deterministic

    def test_as_a_function_that_knows_the_mode(self) -> None:
        ours = in_flax(
            lambda self, x: self.drop(self.q(x)), q=linear(8, 8), drop=nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        )
        theirs = in_torch(lambda self, x: F.dropout(self.q(x), training=self.training), q=nn.Linear(8, 8))
        assert_equal(toy(ours, theirs, normal(4, 8)))
