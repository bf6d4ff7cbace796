"""`LayerNorm` has the derivative of its formula, and its backward pass needs nothing else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels.nn import LayerNorm
from jaxmodels.nn.torch_like import standardize
from tests.quick_compilation import JAXLIB


def plain(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The formula, differentiated by JAX."""
    inverse = (x.var(axis=-1, keepdims=True) + epsilon) ** -0.5
    return (x - x.mean(axis=-1, keepdims=True)) * inverse, inverse


def differentiated(x: jax.Array) -> jax.Array:
    """The computation of `standardize`, differentiated by JAX with a constant shift."""
    deviation = x - jax.lax.stop_gradient(x.mean(axis=-1, keepdims=True))
    mean = deviation.mean(axis=-1, keepdims=True)
    variance = (deviation * deviation).mean(axis=-1, keepdims=True) - mean * mean
    return (deviation - mean) * jax.lax.rsqrt(variance + 1e-5)


def x64(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) * 3 + 1)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 7), (0, 4)])
def test_values_and_derivatives(shape) -> None:
    with jax.enable_x64(True):
        x, t = x64(shape), x64(shape, 1)
        for ours, expected in zip(
            jax.jvp(lambda x: standardize(x, 1e-5), (x,), (t,)),
            jax.jvp(lambda x: plain(x, 1e-5), (x,), (t,)),
            strict=True,
        ):
            for a, b in zip(ours, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)

        def scalar(function):
            return lambda x: sum(jnp.sum(jnp.sin(part)) for part in function(x, 1e-5))

        for derivative in (jax.grad, jax.hessian):
            ours, expected = derivative(scalar(standardize))(x), derivative(scalar(plain))(x)
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-10)


def test_equal_numbers_have_a_finite_gradient() -> None:
    x = jnp.full((2, 48), 0.7)

    assert np.array_equal(standardize(x, 1e-5)[0], np.zeros_like(x))
    assert np.isfinite(jax.grad(lambda x: standardize(x, 1e-5)[0][0, 0])(x)).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_are_computed_in_float32(dtype) -> None:
    norm = LayerNorm(16, dtype=dtype, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 16)) + 30, dtype)

    assert norm(x).dtype == dtype
    expected = plain(x.astype(jnp.float32), 1e-5)[0]
    np.testing.assert_allclose(norm(x).astype(jnp.float32), expected, atol=0.02)


def widest_loop(normed) -> int:
    """The largest number of operands of a fused loop, in the gradient of eight pre-norm residual layers."""
    x, kernels = jnp.ones((64, 32)), [jnp.ones((32, 32))] * 8

    def loss(kernels):
        out = x
        for kernel in kernels:
            out = out + jnp.tanh(normed(out) @ kernel)
        return jnp.square(out).sum()

    text = jax.jit(jax.grad(loss)).lower(kernels).compile().as_text()
    return max(operands.count(",") + 1 for operands in re.findall(r" fusion\(([^)]*)\)", text))


def test_a_chain_of_residuals_is_not_computed_again() -> None:
    assert widest_loop(LayerNorm(32, rngs=nnx.Rngs(0))) <= 16


@pytest.mark.skipif(JAXLIB >= (0, 12), reason="XLA of jaxlib 0.12 does not repeat sums")
def test_a_chain_of_plain_residuals_is_computed_again() -> None:
    """This is why the derivative of `LayerNorm` is written out."""
    assert widest_loop(differentiated) > 32
