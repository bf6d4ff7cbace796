"""Layers whose activations are computed again in the backward pass instead of being kept for it."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree


Method = TypeVar("Method", bound=Callable)


class Rematerializable(nnx.Module):
    """A layer that keeps nothing but its inputs, after `nnx.view(model, remat=True)`.

    Its method, `rematerialized`, takes arrays and, under the name `rngs`, a stream of dropout.
    """

    remat = False

    def set_view(self, remat: bool | None = None) -> None:
        """Used by `nnx.view`.

        Args:
          remat: compute activations again in the backward pass.
        """
        if remat is not None:
            self.remat = remat


def rematerialized(call: Method) -> Method:
    """The method, whose activations are computed again where its `Rematerializable` says so.

    Unlike `jax.checkpoint` it also works on a CPU, where XLA takes optimization barriers out and then merges the
    second computation with the first (temporary memory of a step: `benchmarks/LOG.md`). Here the second one
    starts from inputs that pass through arithmetic with the incoming gradient, so it is neither the same nor
    possible before. Only reverse mode differentiation, once.
    """

    @functools.wraps(call)
    def wrapper(self: Any, *args: Any, rngs: nnx.Rngs | None = None, **kwargs: Any) -> Any:
        if not self.remat:
            return call(self, *args, **kwargs) if rngs is None else call(self, *args, rngs=rngs, **kwargs)
        graphdef, state = nnx.split((nnx.view(self, remat=False), rngs))
        leaves, structure = jax.tree.flatten((args, kwargs))
        floating = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

        def body(state: Any, activations: list[Array], others: list[Array]) -> tuple[Any, Any]:
            # Drawing counts in place, where a number is known when the function is traced: hence a copy.
            layer, rngs = nnx.merge(graphdef, jax.tree.map(_copied_if_integer, state))
            rest, given = iter(others), iter(activations)
            args, kwargs = jax.tree.unflatten(structure, [next(given if f else rest) for f in floating])
            out = call(layer, *args, **kwargs) if rngs is None else call(layer, *args, rngs=rngs, **kwargs)
            return out, nnx.state(rngs)

        @jax.custom_vjp
        def once(state: Any, activations: list[Array], others: list[Array]) -> tuple[Any, Any]:
            return body(state, activations, others)

        def backward(kept: tuple, cotangents: tuple[PyTree, Any]) -> tuple:
            state, activations, others = kept
            activations = _after(activations, cotangents[0])
            again = lambda state, activations: body(state, activations, others)  # noqa: E731
            _, pull, _ = jax.vjp(again, state, activations, has_aux=True)
            return *pull(cotangents[0]), None

        once.defvjp(lambda *inputs: (once(*inputs), inputs), backward)
        activations = [leaf for leaf, f in zip(leaves, floating, strict=True) if f]
        others = [leaf for leaf, f in zip(leaves, floating, strict=True) if not f]
        out, drawn = once(state, activations, others)
        if rngs is not None:
            nnx.update(rngs, drawn)
        return out

    return wrapper  # ty: ignore[invalid-explicit-return]


def _copied_if_integer(x: Array) -> Array:
    return jnp.array(x, copy=True) if jnp.issubdtype(x.dtype, jnp.integer) else x


def _after(arrays: list[Array], other: PyTree) -> list[Array]:
    """`arrays`, which now depend on `other`."""

    def divided(arrays: list[Array], other: PyTree) -> list[Array]:
        first = jax.tree.leaves(other)[0]
        if first.size == 0:  # nothing to compute
            return arrays
        one = one_hidden_in(first)
        return [x / one.astype(x.dtype) for x in arrays]

    def barred(arrays: list[Array], other: PyTree) -> list[Array]:
        return jax.lax.optimization_barrier((arrays, other))[0]

    return jax.lax.platform_dependent(arrays, other, cpu=divided, default=barred)


def one_hidden_in(x: Float[Array, "*shape"]) -> Int[Array, ""]:
    """1, computed from a bit of `x`, which must have an element: NaN will do. The compiler does not see through it."""
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bit = jax.lax.bitcast_convert_type(x[(0,) * x.ndim], unsigned) & 1
    return 1 + bit * (1 - bit)
