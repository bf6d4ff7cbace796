"""`materialize` changes no bit and no gradient, and keeps XLA's CPU compiler from repeating sums."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels.nn import LayerNorm, materialize


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("first", [0.0, -0.0, 1.5, np.nan, np.inf, -np.inf, 6e-5])
def test_no_bit_changes(first, dtype) -> None:
    x = jnp.asarray([first, 1.0, -3.0, np.nan, np.inf, -0.0], dtype)

    for result in (materialize(x), jax.jit(materialize)(x)):
        np.testing.assert_array_equal(np.asarray(result).view(np.uint8), np.asarray(x).view(np.uint8))


def test_no_bit_changes_in_float64() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray([1 / 3, np.nan, -0.0])
        np.testing.assert_array_equal(
            np.asarray(materialize(x)).view(np.uint64), np.asarray(x).view(np.uint64)
        )


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (2, 3)])
def test_every_shape(shape) -> None:
    assert materialize(jnp.ones(shape)).shape == shape


def test_every_derivative() -> None:
    x, t = jnp.asarray([2.0, -3.0]), jnp.asarray([5.0, 7.0])

    assert jax.jvp(materialize, (x,), (t,))[1].tolist() == [5, 7]
    assert jax.vjp(materialize, x)[1](t)[0].tolist() == [5, 7]
    assert jax.hessian(lambda x: (materialize(x) ** 3).sum())(x).tolist() == [[12, 0], [0, -18]]
    assert jax.vmap(materialize)(jnp.ones((3, 2))).shape == (3, 2)


def widest_loop(keep) -> int:
    """Operands of the fused loop that has most of them, in the gradient of eight pre-norm residual layers."""
    norm, x, kernels = LayerNorm(32, rngs=nnx.Rngs(0)), jnp.ones((64, 32)), [jnp.ones((32, 32))] * 8

    def loss(kernels):
        out = x
        for kernel in kernels:
            out = keep(out + jnp.tanh(norm(out) @ kernel))
        return jnp.square(out).sum()

    text = jax.jit(jax.grad(loss)).lower(kernels).compile().as_text()
    return max(operands.count(",") + 1 for operands in re.findall(r" fusion\(([^)]*)\)", text))


def test_a_chain_of_residuals_is_not_repeated() -> None:
    assert widest_loop(materialize) <= 16
    assert widest_loop(lambda x: x) > 32, "XLA no longer repeats sums: materialize can go"


def test_other_backends_see_nothing_of_it() -> None:
    traced = jax.jit(materialize).trace(jnp.ones(3))
    assert "divide" in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("cuda", "tpu"):
        assert "divide" not in traced.lower(lowering_platforms=(platform,)).as_text()
