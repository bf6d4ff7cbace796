"""Where a difference is said to be, and float32's own luck, which is no difference."""

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

from jaxmodels.compare import Pair, Result, compare
from jaxmodels.compare.divergence import Findings, find_divergence
from jaxmodels.compare.noise import Check, Draw, LayerCheck, NoiseFloor, tensor_checks
from parity_tests.toy_pairs import in_flax, in_torch, linear, normal, one_linear, toy


pytestmark = pytest.mark.usefixtures("without_diagnosis")


def place(result: Result) -> tuple[str, str]:
    assert result.divergence is not None, result.reason
    return result.divergence.layer, result.divergence.detail


def two_layers(**options: Any) -> Pair:
    return toy(
        in_flax(lambda self, x: self.b(self.a(x)), a=linear(8, 8), b=linear(8, 5)),
        in_torch(lambda self, x: self.b(self.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 5)),
        normal(16, 8),
        **options,
    )


def mean_square(model: Any, inputs: Any) -> Any:
    return (model(inputs["x"]) ** 2).mean()


class TestLoss:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_of_another_value(self, dtype: Any) -> None:
        pair = two_layers(loss_ours=lambda *args: 1.2 * mean_square(*args), loss_theirs=mean_square)
        layer, detail = place(compare(pair, dtype=dtype, steps=1))
        assert layer == "(loss)"
        assert detail.startswith("the outputs agree, the loss does not: ")

    def test_of_another_gradient(self) -> None:
        def doubled(model: Any, inputs: Any) -> jax.Array:
            loss = mean_square(model, inputs)
            return 2 * loss - jax.lax.stop_gradient(loss)

        layer, detail = place(compare(two_layers(loss_ours=doubled, loss_theirs=mean_square), steps=0))
        assert layer == "(loss)"
        assert "every gradient in JAX is 2 times PyTorch's" in detail

    def test_a_gradient_that_one_layer_loses_is_no_loss(self) -> None:
        pair = toy(
            in_flax(lambda self, x: self.b(jax.lax.stop_gradient(self.a(x))), a=linear(8, 8), b=linear(8, 5)),
            in_torch(lambda self, x: self.b(self.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 5)),
            normal(16, 8),
        )
        layer, detail = place(compare(pair, steps=0))
        assert layer == "a"
        assert "the gradient of a.weight does not" in detail or "the gradient of a.bias does not" in detail


class TestLayers:
    def test_none_that_could_be_compared(self) -> None:
        class Ours(nnx.Module):
            def __init__(self) -> None:
                self.weight = nnx.Param(jnp.zeros((8, 8)))

            def __call__(self, x):
                return 2 * (x @ self.weight[...].T)

        theirs = nn.Linear(8, 8, bias=False)
        layer, detail = place(compare(toy(Ours(), theirs, normal(4, 8)), gradients=False))
        assert layer == "(model)"
        assert detail == "output 0 differs. No layer could be compared (the table pairs no modules)"

    def test_one_that_is_no_module_in_jax(self) -> None:
        ours = in_flax(
            lambda self, x: 2 * (self.a(x) @ self.b.kernel[...] + self.b.bias[...]),
            a=linear(8, 8),
            b=linear(8, 5),
        )
        result = compare(replace(two_layers(), ours=ours), gradients=False)
        assert result.not_compared == {"b": "never called as a module in JAX"}
        assert "1 of 2 layers were compared" in place(result)[1]

    def test_all_agree_and_the_output_does_not(self) -> None:
        _, detail = place(compare(one_linear(lambda y: 2 * y), gradients=False))
        assert detail == (
            "output 0 differs although all layers that were compared agree (1 of 1 layers were compared)"
        )

    def test_calls_that_a_subclass_inherits_or_extends(self) -> None:
        class Inherits(nnx.Linear):
            pass

        class Extends(nnx.Linear):
            def __call__(self, inputs):
                return super().__call__(inputs)

        for kind in (Inherits, Extends):
            ours = in_flax(lambda self, x: self.layer(x), layer=kind(8, 8, rngs=nnx.Rngs(0)))
            result = compare(replace(one_linear(), ours=ours), gradients=False)
            assert result.ok
            assert [(check.kind, check.call) for check in result.layers] == [("input", 0), ("output", 0)]

    def test_weights_that_pytorch_ties_and_jax_does_not(self) -> None:
        theirs = in_torch(
            lambda self, ids: self.head(self.embed(ids)),
            embed=nn.Embedding(11, 8),
            head=nn.Linear(8, 11, bias=False),
        )
        theirs.head.weight = theirs.embed.weight
        ours = in_flax(
            lambda self, ids: self.head(self.embed(ids)),
            embed=nnx.Embed(11, 8, rngs=nnx.Rngs(0)),
            head=linear(8, 11, use_bias=False),
        )
        layer, detail = place(compare(toy(ours, theirs, inputs={"ids": np.arange(9)[None]}), steps=0))
        assert layer == "head"
        assert "PyTorch ties it to embed.weight, and JAX has two parameters" in detail

    def test_a_shape_of_its_own_is_named_where_outputs_differ(self) -> None:
        ours = in_flax(lambda self, x: self.b(self.a(x))[:, :4], a=linear(8, 8), b=linear(8, 5))
        layer, _ = place(compare(replace(two_layers(), ours=ours), gradients=False))
        assert layer == "(model)"


class TestFindings:
    """The verdict is a function of checks alone."""

    def layer(self, name: str, kind: Any, error: float, *, binding: bool = True) -> LayerCheck:
        return LayerCheck(name, error, 1e-7, 1e-6, call=0, kind=kind, binding=binding)

    def test_a_container_that_differs_before_all_agrees_again(self) -> None:
        layers = [self.layer("block", "output", 1.0, binding=False), self.layer("head", "input", 0.0)]
        assert find_divergence(Findings(layers=layers, outputs=[Check("output 0", 0.0, 0.0, 0.0)])) is None
        layers.append(self.layer("head", "output", 1.0))
        found = find_divergence(Findings(layers=layers, outputs=[Check("output 0", 1.0, 1e-7, 1e-6)]))
        assert found is not None
        assert found.layer == "head"

    def test_a_container_counts_where_the_output_differs(self) -> None:
        layers = [self.layer("block", "output", 1.0, binding=False)]
        found = find_divergence(Findings(layers=layers, outputs=[Check("output 0", 1.0, 1e-7, 1e-6)]))
        assert found is not None
        assert found.layer == "block"

    def test_a_layer_that_must_agree_counts_alone(self) -> None:
        layers = [self.layer("norm", "input", 0.0), self.layer("norm", "output", 1.0)]
        found = find_divergence(Findings(layers=layers, outputs=[Check("output 0", 0.0, 0.0, 0.0)]))
        assert found is not None
        assert found.detail == "norm gets the same input and returns another output"


class TestFloat32:
    """Rounding decides which branch a ReLU takes near zero, and an optimiser counts in powers of 0.999."""

    def with_fault(self, is_there: Callable[[jax.Array], jax.Array]) -> Pair:
        """JAX's gradient is wrong wherever `is_there` says so of the first layer's weights."""
        pair = two_layers(loss_theirs=mean_square)

        def loss_ours(model: Any, inputs: Any) -> jax.Array:
            loss = mean_square(model, inputs)
            wrong = loss + 1e-3 * (model.a.kernel.sum() - jax.lax.stop_gradient(model.a.kernel.sum()))
            return jnp.where(is_there(model.a.kernel[...]), wrong, loss)

        return replace(pair, loss_ours=loss_ours)

    def test_a_kink_at_one_point_is_no_difference(self) -> None:
        weights = jnp.zeros((8, 8))
        pair = self.with_fault(lambda kernel: jnp.allclose(kernel, weights, rtol=1e-5, atol=0))
        weights = jnp.asarray(pair.theirs.a.weight.detach().numpy().T)
        result = compare(pair, steps=1)
        assert result.ok, result.divergence
        assert any("agree at others nearby" in note for note in result.notes)

    def test_a_fault_at_every_point_is_one(self) -> None:
        layer, detail = place(compare(self.with_fault(lambda kernel: True), steps=1))
        assert layer == "a"
        assert "the gradient of a.weight does not" in detail

    def test_the_smallest_error_is_held_against_the_median_noise(self) -> None:
        def draw(error: float, noise: float) -> Draw:
            exact = np.ones(3)
            return Draw(
                {"w": exact + noise + error}, {"float32": {"w": exact + noise}, "float64": {"w": exact}}
            )

        floor = NoiseFloor("float32")
        lucky = [draw(1e-3, 1e-6), *(draw(1e-7, 1e-6) for _ in range(4))]
        assert tensor_checks(floor, ["w"], lucky, "gradient")[0].ok
        faulty = [
            draw(1e-3, 1e-2),
            *(draw(1e-3, 1e-6) for _ in range(4)),
        ]  # a single large noise hides nothing
        assert not tensor_checks(floor, ["w"], faulty, "gradient")[0].ok

    @pytest.mark.parametrize("seed", range(3))
    def test_fresh_layer_norms_after_steps(self, seed: int) -> None:
        torch.manual_seed(seed)
        norm = nnx.LayerNorm(16, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
        ours = in_flax(lambda self, x: self.head(self.norm(x)), norm=norm, head=linear(16, 4))
        theirs = in_torch(
            lambda self, x: self.head(self.norm(x)), norm=nn.LayerNorm(16), head=nn.Linear(16, 4)
        )
        result = compare(toy(ours, theirs, normal(16, 16, seed=seed)))
        assert result.ok, result.divergence
        assert max(check.tolerance for check in result.weights) < 1e-4

    @pytest.mark.parametrize("seed", [0, 1])
    def test_twelve_residual_layers(self, seed: int) -> None:
        """With seed 1 a ReLU takes the other branch in JAX, and nowhere in PyTorch's two types."""
        torch.manual_seed(seed)
        names = [f"layer{i}" for i in range(12)]

        def deep(relu: Callable) -> Callable:
            def call(self: Any, x: Any) -> Any:
                for name in names:
                    x = x + relu(getattr(self, name)(x))
                return x

            return call

        ours = in_flax(deep(jax.nn.relu), **{name: linear(256, 256) for name in names})
        theirs = in_torch(deep(torch.relu), **{name: nn.Linear(256, 256) for name in names})
        result = compare(toy(ours, theirs, normal(8, 256, seed=seed)))
        assert result.ok, result.divergence
