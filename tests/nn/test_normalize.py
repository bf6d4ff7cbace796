"""`l2_normalize` has the derivative of its formula, also where that is not smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodels.nn import l2_normalize


def plain(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """The formula for norms above eps, differentiated by JAX."""
    return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 7), (0, 4)])
def test_values_and_derivatives(shape) -> None:
    with jax.enable_x64(True):
        x, t = (jnp.asarray(np.random.default_rng(seed).standard_normal(shape)) for seed in (0, 1))
        for ours, expected in zip(jax.jvp(l2_normalize, (x,), (t,)), jax.jvp(plain, (x,), (t,)), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)
        for derivative in (jax.grad, jax.hessian):
            ours, expected = (
                derivative(lambda x, f=f: jnp.sin(f(x)).sum())(x) for f in (l2_normalize, plain)
            )
            np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-3])
def test_below_eps_it_is_a_division_by_eps(scale) -> None:
    x = jnp.asarray([3.0, -4.0]) * scale * 0.1

    np.testing.assert_allclose(l2_normalize(x, eps=0.1), x / 0.1, rtol=1e-6)
    gradient = jax.jacobian(lambda x: l2_normalize(x, eps=0.1))(x)
    np.testing.assert_allclose(gradient, np.eye(2) / 0.1, rtol=1e-6)


def test_zero_has_a_finite_gradient() -> None:
    assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros(3))).all()
