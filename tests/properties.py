"""Properties that every model must have and that parity with PyTorch does not show."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


Call = Callable[..., jax.Array]


def run(model: nnx.Module, *inputs: jax.Array) -> jax.Array:
    return model(*inputs)


def check_jit(model: nnx.Module, *inputs: Any, call: Call = run, atol: float = 1e-5) -> None:
    """Asserts that compiled equals eager, and that a second call with other values does not trace again."""
    traces = 0

    def counted(model: nnx.Module, *inputs: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return call(model, *inputs)

    compiled = jax.jit(counted)
    np.testing.assert_allclose(compiled(model, *inputs), call(model, *inputs), rtol=0, atol=atol)
    compiled(model, *(jnp.flip(x, 0) for x in inputs))
    assert traces == 1, "the second call traced again"


def check_batch(model: nnx.Module, *inputs: Any, call: Call = run, atol: float = 1e-5) -> None:
    """Asserts that a sample's output does not depend on the others, and that `jax.vmap` gives the same."""
    together = call(model, *inputs)
    one_by_one = jnp.concatenate(
        [call(model, *(x[i : i + 1] for x in inputs)) for i in range(len(inputs[0]))]
    )
    np.testing.assert_allclose(together, one_by_one, rtol=0, atol=atol)
    mapped = jax.vmap(lambda *sample: call(model, *(x[None] for x in sample))[0])(*inputs)
    np.testing.assert_allclose(together, mapped, rtol=0, atol=atol)


def check_gradients(model: nnx.Module, *inputs: Any, call: Call = run) -> None:
    """`jax.grad` and `nnx.grad` agree, in graph mode and in tree mode, and are finite."""

    def loss(model: nnx.Module) -> jax.Array:
        return jnp.mean(jnp.square(call(model, *inputs)))

    def leaves(tree: Any) -> list[np.ndarray]:
        state = nnx.state(tree, nnx.Param) if isinstance(tree, nnx.Module) else tree
        return [np.asarray(x) for x in jax.tree.leaves(state)]

    expected = leaves(jax.jit(jax.grad(loss))(model))
    assert all(np.isfinite(g).all() for g in expected)
    assert any(np.abs(g).max() > 0 for g in expected if g.size)
    for graph in (True, False):
        with nnx.set_graph_mode(graph):
            actual = leaves(nnx.jit(nnx.grad(loss))(model))
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max(initial=0)))


def check_gradients_at_zero(model: nnx.Module, blank: jax.Array) -> None:
    """The gradients of weights and input are finite at zeros: there a norm divides by the root of epsilon alone."""
    gradients = jax.jit(jax.grad(lambda model, x: jnp.sum(model(x)), argnums=(0, 1)))(model, blank)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))


def check_bfloat16(build: Callable[..., nnx.Module], *inputs: Any, call: Call = run, distance: float) -> None:
    """bfloat16 compute with float32 parameters stays within `distance` · std of the float32 output."""
    exact = np.asarray(call(build(dtype=None), *inputs))
    rough = call(build(dtype=jnp.bfloat16), *inputs)
    assert rough.dtype == jnp.bfloat16
    error = np.abs(np.asarray(rough, np.float32) - exact).max()
    assert 0 < error <= distance * exact.std(), f"off by {error / exact.std():.3g} standard deviations"
