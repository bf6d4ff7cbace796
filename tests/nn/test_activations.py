"""`gelu` has the derivative of its formula, and its backward pass needs only the input."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodels.nn import gelu


def plain(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def test_values_and_derivatives() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray([-40.0, -6.0, -1.3, -0.0, 0.0, 1e-3, 0.7, 5.0, 40.0])
        np.testing.assert_allclose(gelu(x), plain(x), rtol=1e-12, atol=1e-15)
        ours, theirs = jax.vmap(gelu), jax.vmap(plain)
        for _ in range(3):  # the third derivative is that of autodiff on our second
            ours, theirs = (jax.vmap(jax.grad(lambda x, f=f: f(x[None])[0])) for f in (ours, theirs))
            np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-9, atol=1e-12)
        t = jnp.ones_like(x)
        np.testing.assert_allclose(
            jax.jvp(gelu, (x,), (t,))[1], jax.jvp(plain, (x,), (t,))[1], rtol=1e-10, atol=1e-14
        )


def test_types_stay() -> None:
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        x = jnp.ones(3, dtype)
        assert gelu(x).dtype == jax.grad(lambda x: gelu(x).sum())(x).dtype == dtype


def test_bfloat16_is_rounded_once() -> None:
    """In bfloat16 throughout, 1 + erf(x) would lose the tail, and most other values their last digit."""
    x = jnp.linspace(-4, 4, 1001, dtype=jnp.bfloat16)
    exact, slope = (jax.vmap(f)(x.astype(jnp.float32)) for f in (gelu, jax.grad(gelu)))
    assert (gelu(x) == exact.astype(jnp.bfloat16)).all()
    assert (jax.vmap(jax.grad(gelu))(x) == slope.astype(jnp.bfloat16)).all()


def error_functions(activation) -> int:
    """The number of arrays computed with erf that the backward pass of a two-layer network needs."""

    def loss(kernels, x):
        return jnp.square(activation(x @ kernels[0]) @ kernels[1]).sum()

    kernels = [jnp.ones((32, 128)), jnp.ones((128, 32))]
    text = jax.jit(jax.grad(loss)).lower(kernels, jnp.ones((64, 32))).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    return len(re.findall(r"erf\w* = \S+ fusion\(", entry))


def test_no_error_function_is_kept() -> None:
    def written_plainly(x):
        return x * (0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5)))

    assert error_functions(gelu) == 0
    assert error_functions(written_plainly) == 1, (
        "XLA keeps none anyway: the derivative need not be written out"
    )
