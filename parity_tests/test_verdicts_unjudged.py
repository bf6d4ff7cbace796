"""What would agree for a wrong port as well cannot be judged; what is random, or cannot run, is refused."""

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

import jaxmodels as jm
from jaxmodels.compare import Result, compare
from jaxmodels.compare.noise import LARGEST_TOLERANCE, NoiseFloor
from jaxmodels.compare.subjects import pair_of
from parity_tests.toy_pairs import in_flax, in_torch, linear, normal, one_linear, toy


def assert_unjudged(result: Result, reason: str) -> None:
    assert result.verdict == "cannot be judged", result.divergence
    assert not result.ok
    assert result.divergence is None
    assert result.reason is not None
    assert reason in result.reason


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (lambda y: y * 0, lambda y: y * 0, "output 0 is zero everywhere"),
        (lambda y: (y, y * 0), lambda y: (y, y * 0), "output 1 is zero everywhere"),
        (lambda y: 3 * y * jnp.nan, lambda y: y * torch.nan, "output 0: no value is finite"),
        (lambda y: 0 * y + jnp.inf, lambda y: 0 * y + torch.inf, "output 0: no value is finite"),
        (lambda y: y[:0], lambda y: y[:0], "output 0 has no elements"),
    ],
    ids=["zero", "zero beside others", "NaN", "infinity", "empty"],
)
def test_outputs_that_say_nothing(ours: Callable, theirs: Callable, reason: str) -> None:
    assert_unjudged(compare(one_linear(ours, theirs), gradients=False), reason)


def test_zero_on_one_side_is_a_difference() -> None:
    assert compare(one_linear(lambda y: y * 0), gradients=False).verdict == "different"
    assert compare(one_linear(theirs=lambda y: y * 0), gradients=False).verdict == "different"


def test_no_gradient_anywhere() -> None:
    pair = one_linear(jax.lax.stop_gradient, torch.Tensor.detach)
    assert_unjudged(compare(pair, steps=0), "every gradient is zero")


def test_a_gradient_on_one_side_alone_is_a_difference() -> None:
    assert compare(one_linear(jax.lax.stop_gradient), steps=0).verdict == "different"
    assert compare(one_linear(theirs=torch.Tensor.detach), steps=0).verdict == "different"


def changed(array: np.ndarray, value: float) -> np.ndarray:
    """A copy with one other value, at [1, 2]."""
    return np.where((np.arange(array.size) == array.shape[1] + 2).reshape(array.shape), value, array)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": {"x": changed(normal(4, 8), np.nan)}}, r"inputs\['x'\] holds nan at \[1, 2\]: both models"),
        ({"inputs": {"x": changed(normal(4, 8), -np.inf)}}, r"inputs\['x'\] holds -inf at \[1, 2\]"),
        ({"inputs": {"x": changed(normal(4, 8), 1e300)}}, r"inputs\['x'\] holds inf at \[1, 2\]"),
        ({"to_ours": lambda inputs: {"x": inputs["x"] / 0}}, r"to_ours\(inputs\)\['x'\] holds -?inf at .*, and 31 more"),
        (
            {"batches": lambda step: {"x": normal(4, 8) if step == 0 else changed(normal(4, 8), np.inf)}},
            r"batches\(1\)\['x'\] holds inf at \[1, 2\]",
        ),
    ],
    ids=["NaN", "infinity", "overflow", "to_ours", "batches"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:(divide by zero|overflow) encountered:RuntimeWarning")
def test_inputs_that_are_not_finite(options: dict[str, Any], message: str) -> None:
    ran = []
    pair = one_linear(lambda y: ran.append(y) or y, **options)
    with pytest.raises(ValueError, match=message):
        compare(pair, steps=2)
    assert not ran or "batches" in options


def test_an_additive_mask_may_hold_infinity() -> None:
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf)
    pair = toy(
        in_flax(lambda s, x, y: jax.nn.softmax(s.q(x) @ x.T + y), q=linear(8, 8)),
        in_torch(lambda s, x, y: torch.softmax(s.q(x) @ x.T + y, -1), q=nn.Linear(8, 8)),
        normal(4, 8),
        mask,
    )
    assert compare(pair, gradients=False).ok


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["PyTorch", "JAX"])
def test_weights_that_are_not_finite(value: float, side: str) -> None:
    pair = one_linear()
    if side == "PyTorch":
        with torch.no_grad():
            pair.theirs.layer.bias[1] = value
    else:
        pair.ours.temperature = nnx.Param(jnp.array([1.0, value]))
        pair = replace(pair, only_ours=("temperature",))
    name = {"PyTorch": r"layer\.bias", "JAX": "temperature"}[side]
    with pytest.raises(
        ValueError, match=rf"the weight {name} of the {side} model holds {value} at \[1\]: give"
    ):
        compare(pair, gradients=False)


def test_a_buffer_may_hold_infinity_and_no_nan() -> None:
    pair = one_linear()
    pair.theirs.register_buffer("mask", torch.tensor([0.0, -torch.inf]), persistent=False)
    assert compare(pair, gradients=False).ok
    pair.theirs.mask[0] = torch.nan
    with pytest.raises(ValueError, match=r"the weight mask of the PyTorch model holds nan at \[0\]"):
        compare(pair, gradients=False)


def test_a_model_whose_weights_are_zero() -> None:
    model = jm.Glom(jm.GlomConfig(dim=8, levels=2, image_size=8, patch_size=4), rngs=nnx.Rngs(0))
    weights = {name: value * 0 for name, value in jm.to_state_dict(model).items()}
    assert_unjudged(
        compare(pair_of(jm.load_state_dict(model, weights)), steps=1), "output 0 is zero everywhere"
    )


def test_images_in_the_other_layout() -> None:
    pair = toy(
        in_flax(lambda s, x: s.conv(x), conv=nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))),
        in_torch(lambda s, x: s.conv(x), conv=nn.Conv2d(3, 4, 3)),
        normal(2, 3, 7, 7),
    )
    way_out = r"needs to_ours=lambda inputs: inputs \| \{'x': np\.moveaxis\(inputs\['x'\], 1, -1\)\}$"
    with pytest.raises(ValueError, match=way_out):
        compare(pair, gradients=False)


class TestCoarseTypes:
    """bfloat16 keeps three digits: what it hides is said, and what it cannot hide is found."""

    def rounded(self, ours: Callable, theirs: Callable) -> Any:
        torch.manual_seed(0)
        return toy(
            in_flax(lambda self, x: ours(self.layer(x)), layer=linear(64, 64)),
            in_torch(lambda self, x: theirs(self.layer(x)), layer=nn.Linear(64, 64)),
            normal(256, 64),
        )

    def test_bfloat16_outputs(self) -> None:
        right = self.rounded(lambda y: y.astype(jnp.bfloat16), torch.Tensor.bfloat16)
        assert_unjudged(compare(right, gradients=False), "above 0.01 it proves nothing")
        wrong = self.rounded(lambda y: (10 * y).astype(jnp.bfloat16), torch.Tensor.bfloat16)
        assert compare(wrong, gradients=False).verdict == "different"

    def test_float16_outputs(self) -> None:
        assert compare(self.rounded(lambda y: y.astype(jnp.float16), torch.Tensor.half), gradients=False).ok
        wrong = self.rounded(lambda y: (1.02 * y).astype(jnp.float16), torch.Tensor.half)
        assert compare(wrong, gradients=False).verdict == "different"

    @pytest.mark.parametrize(("factor", "verdict"), [(1, "cannot be judged"), (3, "different")])
    def test_bfloat16_inside(self, factor: int, verdict: str) -> None:
        class Coarse(nn.Linear):
            def forward(self, input: torch.Tensor) -> torch.Tensor:
                return super().forward(input).bfloat16()

        theirs = in_torch(lambda self, x: self.b(self.a(x).to(x.dtype)), a=Coarse(8, 8), b=nn.Linear(8, 8))
        ours = in_flax(
            lambda self, x: factor * self.b(self.a(x).astype(jnp.bfloat16).astype(x.dtype)),
            a=linear(8, 8),
            b=linear(8, 8),
        )
        assert compare(toy(ours, theirs, normal(4, 8)), gradients=False).verdict == verdict

    def test_no_tolerance_above_the_bound_is_ever_equal(self) -> None:
        for noise in (1e-6, LARGEST_TOLERANCE / 8, LARGEST_TOLERANCE / 7.9, 1.0):
            check = NoiseFloor("float32").check("x", 0.0, noise)
            assert (check.undecided is None) == (check.tolerance <= LARGEST_TOLERANCE)

    def test_float64_of_layers_fixed_to_float32(self) -> None:
        pair = toy(
            in_flax(lambda self, x: self.q(x), q=linear(8, 8, dtype=jnp.float32)),
            in_torch(lambda self, x: self.q(x), q=nn.Linear(8, 8)),
            normal(4, 8),
        )
        expected = "q: JAX computes in float32, PyTorch in float64; remove its dtype="
        assert_unjudged(compare(pair, dtype="float64", steps=1), expected)
        assert compare(pair, dtype="float32", steps=1).ok

    def test_bfloat16_in_jax_alone_is_named(self) -> None:
        pair = toy(
            in_flax(lambda self, x: self.q(x).astype(x.dtype), q=linear(8, 8, dtype=jnp.bfloat16)),
            in_torch(lambda self, x: self.q(x), q=nn.Linear(8, 8)),
            normal(4, 8),
        )
        result = compare(pair, gradients=False)
        assert result.divergence is not None
        assert result.divergence.layer == "q"
        assert "q: JAX computes in bfloat16, PyTorch in float32" in result.notes


class TestRandomModels:
    """Random in evaluation mode: PyTorch's two runs would otherwise be its own noise."""

    def test_pytorch(self) -> None:
        state = torch.get_rng_state()
        with pytest.raises(
            ValueError, match=r"the PyTorch model returns other values when it runs a second time"
        ):
            compare(one_linear(theirs=F.dropout), gradients=False)
        torch.set_rng_state(state)

    def test_pytorch_names_the_module(self) -> None:
        block = in_torch(lambda self, x: F.dropout(self.inner(x)), inner=nn.Linear(8, 8))
        theirs = in_torch(lambda self, x: self.head(self.block(x)), block=block, head=nn.Linear(8, 8))
        ours = in_flax(
            lambda self, x: self.head(self.block(x)),
            block=in_flax(lambda self, x: self.inner(x), inner=linear(8, 8)),
            head=linear(8, 8),
        )
        with pytest.raises(ValueError, match=r"\(first seen in block's output\)"):
            compare(toy(ours, theirs, normal(4, 8)), gradients=False)

    def test_pytorchs_loss(self) -> None:
        pair = one_linear(
            loss_ours=lambda model, inputs: (model(inputs["x"]) ** 2).mean(),
            loss_theirs=lambda model, inputs: (F.dropout(model(inputs["x"])) ** 2).mean(),
        )
        with pytest.raises(ValueError, match=r"loss_theirs returns .* and then .*: it is random"):
            compare(pair, steps=0)

    def test_jax_with_random_keys(self) -> None:
        class Ours(nnx.Module):
            def __init__(self) -> None:
                self.layer, self.rngs = linear(8, 8), nnx.Rngs(3)

            def __call__(self, x):
                return self.layer(x) * jax.random.bernoulli(self.rngs(), shape=x.shape)

        with pytest.raises(
            ValueError, match=r"the Flax model returns other values when it runs a second time"
        ):
            compare(replace(one_linear(), ours=Ours()), gradients=False)

    def test_jax_with_numbers_of_numpy(self) -> None:
        pair = one_linear(lambda y: y * np.random.default_rng().uniform())
        with pytest.raises(
            ValueError, match=r"the Flax model returns other values when it runs a second time"
        ):
            compare(pair, gradients=False)

    def test_keys_that_are_never_used_do_no_harm(self) -> None:
        pair = one_linear()
        pair.ours.rngs = nnx.Rngs(0)
        assert compare(pair, gradients=False).ok


class TestRefusals:
    """One sentence that names the thing and the way out."""

    @pytest.mark.parametrize(
        ("ours", "theirs", "message"),
        [
            (
                lambda y: y @ y[:3],
                lambda y: y,
                r"the Flax model fails with TypeError: .*; its inputs are what to_ours returns, x of shape \(4, 8\), passed by call_ours$",
            ),
            (
                lambda y: y,
                lambda y: y @ y,
                r"the PyTorch model fails with RuntimeError: .*; its inputs are those of",
            ),
            (
                lambda y: (y, y),
                lambda y: {"a": y, "b": y},
                r"PyTorch returns output a, output b, JAX returns output 0, output 1; they must return the same",
            ),
            (lambda y: (y, y), lambda y: y, r"PyTorch returns output 0, JAX returns output 0, output 1"),
            (
                lambda y: y,
                lambda y: {"cache": object()},
                r"PyTorch's output cache is of type object; .* return those that it holds",
            ),
            (lambda y: {"name": "a"}, lambda y: y, r"JAX's output name is of type str; .* return those"),
            (lambda y: None, lambda y: None, r"the models return nothing that can be compared"),
        ],
        ids=["JAX fails", "PyTorch fails", "names", "numbers", "object", "text", "nothing"],
    )
    def test_of_calls(self, ours: Callable, theirs: Callable, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            compare(one_linear(ours, theirs), gradients=False)

    @pytest.mark.usefixtures("unchecked_types")
    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"x": None}, r"inputs\['x'\] must be an array of numbers; got a NoneType"),
            ({"x": "text"}, r"inputs\['x'\] must be an array of numbers; got a str"),
            ({"x": [[1.0], [1.0, 2.0]]}, r"inputs\['x'\] must be an array; it is a ragged list"),
            (np.zeros(3), r"inputs must be a dict of arrays by name; got a ndarray"),
        ],
    )
    def test_of_inputs(self, inputs: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            compare(replace(one_linear(), inputs=inputs), gradients=False)

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (
                {"loss_ours": lambda model, x: (model(x["x"]) ** 2).mean(-1)},
                r"loss_ours must return a scalar; got \(4,\)",
            ),
            (
                {"loss_theirs": lambda model, x: (model(x["x"]) ** 2).mean(-1)},
                r"loss_theirs must return a scalar tensor; got \(4,\)",
            ),
            (
                {"loss_theirs": lambda model, x: model(x["y"])},
                r"the loss in PyTorch fails with KeyError: 'y'",
            ),
            ({"loss_ours": lambda model, x: model(x["y"])}, r"the loss in JAX fails with KeyError: 'y'"),
        ],
    )
    def test_of_losses(self, loss: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            compare(one_linear(**loss), steps=0)

    def test_of_models_that_cannot_be_copied(self) -> None:
        class Stubborn(nn.Linear):
            def __deepcopy__(self, memo: dict) -> "Stubborn":
                raise TypeError("cannot pickle a lock")

        pair = one_linear()
        pair.theirs.layer = Stubborn(8, 8)
        with pytest.raises(
            ValueError, match=r"copying the PyTorch model fails with TypeError: cannot pickle a lock"
        ):
            compare(pair)
