"""Pairs as ports bring them: masked logits, float32 inside float64, attention masks, nnx.remat, loops over time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from jaxmodels.compare import Pair, compare
from jaxmodels.convert.table import Parameter
from parity_tests.toy_pairs import CHANNELS_LAST, in_flax, in_torch, linear, normal, one_linear, toy


pytestmark = pytest.mark.usefixtures("without_diagnosis")
RNGS = nnx.Rngs(0)
VISIBLE = np.arange(8) < 5


def of_the_layer(model: Any, inputs: Any) -> Any:
    """A loss that does not see what the model makes of its layer."""
    return (model.layer(inputs["x"]) ** 2).mean()


def masked(fill: Callable, factor: float) -> Pair:
    """Logits of which three of eight are filled; `factor` is JAX's mistake in the others."""
    return one_linear(
        lambda y: jnp.where(VISIBLE, factor * y, fill(jnp.finfo(y.dtype))),
        lambda y: y.masked_fill(~torch.from_numpy(VISIBLE), fill(torch.finfo(y.dtype))),
        loss_ours=of_the_layer,
        loss_theirs=of_the_layer,
    )


class TestMaskedOutputs:
    """The largest value is no scale for the others where it only fills masked places."""

    FILLS = pytest.mark.parametrize(
        "fill",
        [lambda info: -1e9, lambda info: -1e4, lambda info: info.min, lambda info: -np.inf],
        ids=["-1e9", "-1e4", "finfo.min", "-inf"],
    )

    @FILLS
    def test_right(self, fill: Callable) -> None:
        result = compare(masked(fill, 1.0), steps=0)
        assert result.ok, (result.divergence, result.reason)

    @FILLS
    def test_wrong(self, fill: Callable) -> None:
        assert compare(masked(fill, 1.001), steps=0).verdict == "different"

    def test_added_masks(self) -> None:
        bias = np.where(VISIBLE, 0.0, -1e9)

        def pair(factor: float) -> Pair:
            return one_linear(
                lambda y: factor * y + bias.astype(y.dtype), lambda y: y + torch.from_numpy(bias).to(y.dtype)
            )

        assert compare(pair(1.0), gradients=False).ok
        assert compare(pair(1.001), gradients=False).verdict == "different"

    def test_one_channel_that_is_large_fills_nothing(self) -> None:
        scale = np.where(np.arange(8) == 2, 5000.0, 1.0)
        pair = one_linear(
            lambda y: y * scale.astype(y.dtype), lambda y: y * torch.from_numpy(scale).to(y.dtype), rows=32
        )
        assert compare(pair, steps=0).ok


class TorchRMSNorm(nn.Module):
    """In float32 whatever it gets, as in many language models."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x):
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class FlaxRMSNorm(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        self.weight, self.epsilon = nnx.Param(jnp.ones(16)), epsilon

    def __call__(self, x):
        y = x.astype(jnp.float32)
        return self.weight[...] * (y * jax.lax.rsqrt((y**2).mean(-1, keepdims=True) + self.epsilon)).astype(
            x.dtype
        )


def norms(epsilon: float = 1e-6) -> Pair:
    return toy(
        in_flax(lambda self, x: self.head(self.norm(x)), norm=FlaxRMSNorm(epsilon), head=linear(16, 16)),
        in_torch(lambda self, x: self.head(self.norm(x)), norm=TorchRMSNorm(), head=nn.Linear(16, 16)),
        normal(4, 16),
    )


def softmaxes(factor: float = 1.0) -> Pair:
    return one_linear(
        lambda y: jax.nn.softmax(factor * y.astype(jnp.float32)).astype(y.dtype),
        lambda y: F.softmax(y, -1, dtype=torch.float32).to(y.dtype),
    )


def attention(**options: Any) -> Pair:
    """Flax's attention takes its softmax in float32."""
    ours = nnx.MultiHeadAttention(2, 16, decode=False, rngs=RNGS)
    return toy(
        in_flax(lambda self, x: self.attend(x), attend=ours),
        in_torch(
            lambda self, x: self.attend(x, x, x)[0], attend=nn.MultiheadAttention(16, 2, batch_first=True)
        ),
        normal(2, 5, 16),
        **options,
    )


def positions(count: int = 512) -> Pair:
    """Sines of positions, computed in float32 in each call."""

    def of(x: Any, module: Any, *, kind: Any) -> Any:
        places = module.arange(count, dtype=kind)[:, None]
        rates = module.exp(module.arange(0, 8, 1, dtype=kind) * -0.5)
        return module.sin(places * rates)

    return toy(
        in_flax(lambda self, x: self.q(x + of(x, jnp, kind=jnp.float32).astype(x.dtype)), q=linear(8, 8)),
        in_torch(lambda self, x: self.q(x + of(x, torch, kind=torch.float32).to(x.dtype)), q=nn.Linear(8, 8)),
        normal(1, count, 8),
    )


class TestFloat32InsideFloat64:
    """In float64 such pairs differ by float32's rounding, which is no mistake and no proof either."""

    @pytest.mark.parametrize(
        ("pair", "sides"),
        [
            (norms, "PyTorch computes in float32 (first in _to_copy) and JAX computes in float32"),
            (softmaxes, "PyTorch computes in float32 (first in _to_copy) and JAX computes in float32"),
            (attention, "JAX computes in float32"),
            (positions, "PyTorch computes in float32"),
        ],
        ids=["norm", "softmax", "attention", "positions"],
    )
    def test_right(self, pair: Callable[[], Pair], sides: str) -> None:
        result = compare(pair(), dtype="float64", steps=1)
        assert result.verdict == "cannot be judged", result.divergence
        assert result.reason is not None
        assert result.reason.startswith(sides)
        assert "compare in float32" in result.reason
        result = compare(pair(), dtype="float32", steps=1)
        assert result.ok, (result.divergence, result.reason)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_wrong(self, dtype: Any) -> None:
        result = compare(norms(1e-4), dtype=dtype, steps=1)
        assert result.divergence is not None
        assert result.divergence.layer == "norm"
        assert compare(softmaxes(1.001), dtype=dtype, steps=1).verdict == "different"

    def test_a_difference_in_float64_alone_stays_one(self) -> None:
        """A mask made in float32 rounds nothing."""
        mask = torch.zeros(8, 8).masked_fill(torch.ones(8, 8).triu(1).bool(), -1e4)
        pair = one_linear(
            lambda y: y * (1 + 1e-9) + jnp.where(jnp.tril(jnp.ones((8, 8), bool)), 0.0, -1e4),
            lambda y: y + mask.to(y.dtype),
            rows=8,
            loss_ours=of_the_layer,
            loss_theirs=of_the_layer,
        )
        assert compare(pair, dtype="float64", steps=0).verdict == "different"


class FlaxEncoderLayer(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        self.self_attn = nnx.MultiHeadAttention(2, 16, decode=False, rngs=RNGS)
        self.linear1, self.linear2 = linear(16, 32), linear(32, 16)
        self.norm1 = nnx.LayerNorm(16, epsilon=epsilon, rngs=RNGS)
        self.norm2 = nnx.LayerNorm(16, epsilon=epsilon, rngs=RNGS)

    def __call__(self, x, keep):
        x = self.norm1(x + self.self_attn(x, mask=keep))
        return self.norm2(x + self.linear2(jax.nn.relu(self.linear1(x))))


class TestAttention:
    @pytest.mark.parametrize(("epsilon", "layer"), [(1e-5, None), (1e-4, "encoder.layers.0.norm1")])
    def test_padding_in_an_encoder_of_pytorch(self, epsilon: float, layer: str | None) -> None:
        """PyTorch leaves padding out in a kernel of its own, in evaluation alone; here it computes as in training."""
        keep = np.arange(7) < np.array([[7], [4], [2]])
        theirs = in_torch(
            lambda self, x, keep: self.encoder(x, src_key_padding_mask=~keep),
            encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1),
        )
        stack = in_flax(
            lambda self, x, keep: self.layers[0](x, keep), layers=nnx.List([FlaxEncoderLayer(epsilon)])
        )
        ours = in_flax(lambda self, x, keep: self.encoder(x, keep[:, None, None]), encoder=stack)
        result = compare(toy(ours, theirs, inputs={"x": normal(3, 7, 16), "keep": keep}), steps=1)
        assert (result.divergence.layer if result.divergence else None) == layer
        assert result.ok == (layer is None)
        assert torch.backends.mha.get_fastpath_enabled()

    @pytest.mark.parametrize("shift", [0, 1])
    def test_a_causal_mask_that_is_off_by_one(self, shift: int) -> None:
        hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
        theirs = in_torch(
            lambda self, x: self.attend(x, x, x, attn_mask=hidden)[0],
            attend=nn.MultiheadAttention(16, 2, batch_first=True),
        )
        ours = in_flax(
            lambda self, x: self.attend(x, mask=jnp.tril(jnp.ones((5, 5), bool), shift)),
            attend=nnx.MultiHeadAttention(2, 16, decode=False, rngs=RNGS),
        )
        assert compare(replace(attention(), ours=ours, theirs=theirs), gradients=False).ok == (shift == 0)


class TorchStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def stack(step: Callable, activation: Callable = jnp.tanh) -> Pair:
    """Two layers, each called through `step`."""

    def call(self: Any, x: Any) -> Any:
        for layer in self.layers:
            x = step(lambda layer, x: activation(layer(x)))(layer, x)
        return x

    return toy(in_flax(call, layers=nnx.List([linear(8, 8) for _ in range(2)])), TorchStack(), normal(4, 8))


def in_closure(transform: Callable) -> Callable:
    return lambda step: lambda layer, x: transform(lambda x: step(layer, x))(x)


class TestTransforms:
    @pytest.mark.parametrize(
        "transform", [nnx.remat, nnx.jit, in_closure(jax.jit)], ids=["remat", "jit", "jax.jit"]
    )
    def test_layers_inside_are_compared(self, transform: Callable) -> None:
        result = compare(stack(transform), steps=1)
        assert result.ok, (result.divergence, result.reason)
        assert {check.name for check in result.layers} == {"layers.0", "layers.1"}
        assert compare(stack(transform, jax.nn.relu), gradients=False).verdict == "different"

    @pytest.mark.parametrize("transform", [jax.checkpoint, jax.vmap], ids=["checkpoint", "vmap"])
    def test_where_calls_cannot_be_recorded_everything_else_is_compared(self, transform: Callable) -> None:
        result = compare(stack(in_closure(transform)), steps=1)
        assert result.ok, (result.divergence, result.reason)
        assert not result.layers
        assert result.notes[0].startswith(
            "no layer was compared: the Flax model, run under jax.disable_jit() fails"
        )
        wrong = compare(stack(in_closure(transform), jax.nn.relu), gradients=False)
        assert wrong.divergence is not None
        assert wrong.divergence.detail == (
            "output 0 differs. No layer could be compared (calls in JAX could not be recorded)"
        )

    @pytest.mark.parametrize("right", [True, False])
    def test_a_recurrent_network(self, right: bool) -> None:
        class Theirs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.rnn = nn.LSTM(8, 16, batch_first=True)

            def forward(self, x):
                return self.rnn(x)[0]

        class Ours(nnx.Module):
            def __init__(self) -> None:
                self.i, self.h = linear(8, 64), linear(16, 64)

            def __call__(self, x):
                def step(state, x):
                    h, c = state
                    parts = jnp.split(self.i(x) + self.h(h), 4, -1)
                    i, f, g, o = parts if right else (*parts[:2], *parts[:1:-1])
                    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                    h = jax.nn.sigmoid(o) * jnp.tanh(c)
                    return (h, c), h

                zero = jnp.zeros((x.shape[0], 16), x.dtype)
                return jax.lax.scan(step, (zero, zero), x.swapaxes(0, 1))[1].swapaxes(0, 1)

        table = (
            Parameter("rnn.weight_ih_l0", "i.kernel", "o i -> i o"),
            Parameter("rnn.weight_hh_l0", "h.kernel", "o i -> i o"),
            Parameter("rnn.bias_ih_l0", "i.bias"),
            Parameter("rnn.bias_hh_l0", "h.bias"),
        )
        pair = Pair(name="", ours=Ours(), theirs=Theirs(), table=table, inputs={"x": normal(2, 5, 8)})
        assert compare(pair, steps=1).ok == right


class TestTrainingMode:
    """Evaluation mode is compared; what else the layers are set to is said, and a call may ask for more."""

    def test_batch_norm_with_the_statistics_of_the_batch(self) -> None:
        theirs = in_torch(
            lambda self, x: F.batch_norm(x, None, None, self.norm.weight, self.norm.bias, training=True),
            norm=nn.BatchNorm1d(8),
        )
        ours = in_flax(
            lambda self, x: self.norm(x, use_running_average=False),
            norm=nnx.BatchNorm(8, momentum=0.9, epsilon=1e-5, rngs=RNGS),
        )
        result = compare(toy(ours, theirs, normal(16, 8)), steps=2)
        assert result.ok, (result.divergence, result.reason)
        assert not result.notes

    def test_settings_of_training_alone(self) -> None:
        theirs = in_torch(
            lambda self, x: self.drop(self.norm(x)), norm=nn.BatchNorm1d(8), drop=nn.Dropout(0.1)
        )
        ours = in_flax(
            lambda self, x: self.drop(self.norm(x)),
            norm=nnx.BatchNorm(8, momentum=0.1, epsilon=1e-5, rngs=RNGS),
            drop=nnx.Dropout(0.5, rngs=RNGS),
        )
        result = compare(toy(ours, theirs, normal(16, 8)), gradients=False)
        assert result.ok
        assert sorted(note.partition(";")[0] for note in result.notes) == [
            "drop: the rate of dropout is 0.1 in PyTorch and 0.5 in JAX",
            "norm: the share of the old statistics is 0.9 in PyTorch and 0.1 in JAX",
        ]


class TestInputsAndOutputs:
    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
    def test_tensors(self, kind: torch.dtype) -> None:
        def batch(step: int) -> dict[str, Any]:
            return {"x": torch.from_numpy(normal(4, 8, seed=step)).to(kind).requires_grad_()}

        result = compare(one_linear(inputs=batch(0), batches=batch), steps=2)
        assert result.ok, (result.divergence, result.reason)

    def test_as_many_channels_as_pixels_need_a_pattern(self) -> None:
        pair = toy(
            in_flax(lambda self, x: self.conv(x), conv=nnx.Conv(3, 6, (3, 3), padding=1, rngs=RNGS)),
            in_torch(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 6, 3, padding=1)),
            normal(2, 3, 6, 6),
            **CHANNELS_LAST,
        )
        result = compare(pair, gradients=False)
        assert result.verdict == "cannot be judged"
        assert result.reason is not None
        assert "give output_axes, such as 'b c h w -> b h w c'" in result.reason
        assert compare(replace(pair, output_axes="b c h w -> b h w c"), gradients=False).ok

    @pytest.mark.parametrize("factor", [1, 2])
    def test_models_without_parameters(self, factor: int) -> None:
        pair = toy(
            in_flax(lambda self, x: factor * jnp.tanh(x)),
            in_torch(lambda self, x: torch.tanh(x)),
            normal(3, 4),
        )
        result = compare(pair)
        assert result.ok == (factor == 1)
        assert result.notes == ["the models share no parameter that is learned, so no gradient was compared"]

    def test_choices_that_are_all_the_same_prove_nothing(self) -> None:
        result = compare(one_linear(lambda y: 3 * y > 100, lambda y: y > 100))
        assert result.verdict == "cannot be judged"
        assert result.reason == "no output is floating-point, and all values of each are the same"


class TestPlaces:
    def test_a_gradient_that_stops_is_no_loss(self) -> None:
        result = compare(one_linear(jnp.round, lambda y: y + (y.round() - y).detach()), steps=0)
        assert result.divergence is not None
        assert result.divergence.layer == "layer"

    def test_a_gradient_behind_all_layers_is_no_loss_without_one(self) -> None:
        pair = one_linear(lambda y: 2 * y - jax.lax.stop_gradient(y))
        result = compare(pair, steps=0)
        assert result.divergence is not None
        assert result.divergence.layer == "(model)"
        assert "what follows the last layer is differentiated differently" in result.divergence.detail

    def test_runs_that_drift_apart_have_no_excuse_where_gradients_differ(self) -> None:
        result = compare(one_linear(jax.lax.stop_gradient), steps=2)
        assert result.verdict == "different"
        assert not result.notes


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pair: {"ours": pair.theirs, "theirs": pair.ours}, r"ours must be an nnx\.Module; got a Toy"),
        (lambda pair: {"theirs": pair.ours}, r"theirs must be a torch\.nn\.Module; got a Toy"),
        (lambda pair: {"table": None}, r"table must be a tuple of Parameter, Twin, Derived and Tied"),
        (
            lambda pair: {"table": (Parameter("layer.weight", "layer.nothing"),)},
            r"the table names what the Flax model does not have: .*nothing",
        ),
        (
            lambda pair: {"table": ()},
            r"not in the model: layer\.bias\n(.|\n)*give table_from_names the names",
        ),
        (
            lambda pair: {"batches": lambda step: {}[step]},
            r"batches\(0\) fails with KeyError: 0; it gets the number",
        ),
        (
            lambda pair: {"output_axes": "b c h -> b h"},
            r"output_axes must be an einops pattern .* \(4, 8\); got",
        ),
        (
            lambda pair: {"output_axes": "b c > c b"},
            r"output_axes must be an einops pattern .* got .*'b c > c b'",
        ),
    ],
)
def test_refusals(change: Callable[[Pair], dict[str, Any]], message: str) -> None:
    pair = one_linear()
    with pytest.raises(ValueError, match=message):
        compare(replace(pair, **change(pair)), steps=1)
