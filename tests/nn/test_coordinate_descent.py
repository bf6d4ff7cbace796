"""Coordinate descent and the router: schedule, budget, gradients, ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxmodels.nn.coordinate_descent import (
    CoordinateDescentRouter,
    coordinate_descent,
    epsilon_schedule,
    straight_through,
)
from tests.quick_compilation import AS_USERS


ANNEALED = {"n_iters": 20, "eps": 1.0, "eps_init": 4.0, "eps_decay": 0.7}


def similarities(*shape: int, std: float = 1.0) -> jax.Array:
    return std * jax.random.normal(jax.random.key(0), shape)


def test_schedule_shrinks_to_the_floor() -> None:
    schedule = epsilon_schedule(3, eps=1.0, eps_init=4.0, eps_decay=0.5)
    assert schedule == [4.0, 2.0, 1.0, 1.0]
    assert epsilon_schedule(2, eps=1.0, eps_init=None, eps_decay=0.5) == [1.0] * 3
    assert epsilon_schedule(1, eps=1.0, eps_init=0.1, eps_decay=1.0) == [1.0] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_iters": 0}, "n_iters must be an integer ≥ 1; got n_iters=0"),
        ({"eps": 0.0}, r"eps must be > 0; got eps=0\.0"),
        ({"eps": float("nan")}, "eps must be > 0; got eps=nan"),
        ({"eps_decay": 0.0}, r"eps_decay must be in \(0, 1\]; got eps_decay=0\.0"),
    ],
)
def test_wrong_arguments(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        coordinate_descent(similarities(2, 4), k=2, **ANNEALED | changes)


def test_enough_steps_reach_the_budget() -> None:
    scores = coordinate_descent(similarities(5, 16), k=4.5, n_iters=500, eps=0.5)
    np.testing.assert_allclose(scores.sum(axis=-1), 4.5, rtol=1e-4)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(std=st.floats(0.1, 100), k=st.floats(1, 12), eps=st.floats(0.03, 4), seed=st.integers(0, 9))
def test_scores_do_not_decrease_with_the_similarity(std, k, eps, seed) -> None:
    s = jnp.sort(std * jax.random.normal(jax.random.key(seed), (4, 12)))
    # As users compile it: the tests' quick compilation has an exponential that is not monotone to the last bit.
    options = {**AS_USERS, "xla_backend_optimization_level": 3}
    scores = jax.jit(
        lambda s: coordinate_descent(s, k=k, **ANNEALED | {"eps": eps}), compiler_options=options
    )(s)
    assert jnp.all((scores >= 0) & (scores <= 1))
    assert jnp.all(jnp.diff(scores) >= 0)


def test_a_saturated_score_is_one_and_has_no_gradient() -> None:
    s = jnp.array([30.0, 0.0, -1.0, -2.0])
    scores, back = jax.vjp(lambda s: coordinate_descent(s, k=2, **ANNEALED), s)
    assert scores[0] == 1
    only_first = back(jnp.array([1.0, 0, 0, 0]))[0]
    assert not only_first.any()


def test_a_backward_pass_has_no_loop() -> None:
    """The steps are differentiated while they are made: one loop for both, and nothing kept from step to step."""
    s = similarities(64, 32)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(coordinate_descent(s, k=4, **ANNEALED) ** 2)))
    program = gradient.lower(s).compile()
    assert program.as_text().count(" while(") == 1
    assert program.memory_analysis().temp_size_in_bytes < 10 * s.nbytes  # the steps are 20


def test_derivatives_of_both_modes_and_of_second_order() -> None:
    # None of these similarities is near the kink where a score reaches the bound.
    s = jnp.array([[0.5, -1, 2, 0.1, 3, -0.7], [0.2, 0.3, -0.4, 0.9, 0.1, -1.5]])
    with jax.enable_x64(True):
        check_grads(
            lambda s: coordinate_descent(jnp.asarray(s), k=1.5, **ANNEALED), [s.astype("float64")], order=2
        )


def test_mask() -> None:
    s = similarities(3, 8)
    mask = jnp.ones((3, 8), bool).at[0, 2:5].set(False).at[1].set(False)
    scores, back = jax.vjp(lambda s: coordinate_descent(s, k=2, mask=mask, **ANNEALED), s)
    assert jnp.all(jnp.where(mask, scores > 0, scores == 0))
    gradient = back(jnp.ones_like(scores))[0]
    assert jnp.isfinite(gradient).all()
    assert not gradient[~mask].any()
    kept = jnp.array([0, 1, 5, 6, 7])
    np.testing.assert_allclose(
        scores[0, kept], coordinate_descent(s[0, kept], k=2, **ANNEALED), rtol=0, atol=1e-6
    )


def test_straight_through_is_one_with_the_gradient_of_its_argument() -> None:
    x = similarities(5)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(straight_through(x**2) * jnp.arange(5.0)))(x)
    assert value == 10
    np.testing.assert_allclose(gradient, 2 * x * jnp.arange(5.0), rtol=1e-6)


@pytest.mark.usefixtures("full_optimisation")
@pytest.mark.parametrize(
    ("options", "runs_the_descent"),
    [({}, False), ({"tie_break": "index"}, True), ({"straight_through": False}, True)],
)
def test_the_descent_is_dead_code_when_nothing_needs_it(options, runs_the_descent) -> None:
    router = CoordinateDescentRouter(8, num_tokens=4, rngs=nnx.Rngs(0), **options)
    program = (
        jax.jit(lambda router, x: router(x)).lower(router, similarities(2, 16, 8)).compile(AS_USERS).as_text()
    )
    assert (" while(" in program) == runs_the_descent
    assert ("exponential(" in program) == runs_the_descent


def test_router() -> None:
    x = similarities(3, 10, 8)
    router = CoordinateDescentRouter(8, num_tokens=4, num_routes=2, rngs=nnx.Rngs(0))
    routed = router(x)
    similarity = router.similarity(x)
    np.testing.assert_array_equal(routed.indices, jnp.argsort(similarity, descending=True)[..., :4])
    np.testing.assert_array_equal(routed.tokens, jax.vmap(lambda x, i: x[i])(x, routed.indices))
    np.testing.assert_array_equal(routed.scores, jnp.ones((3, 2, 4)))
    ranking = jnp.sort(similarity, descending=True)
    np.testing.assert_allclose(routed.margin, ranking[..., 3] - ranking[..., 4], rtol=1e-6)

    other = jnp.flip(routed.indices, axis=0)
    given = router(x, other)
    np.testing.assert_array_equal(given.indices, other)
    np.testing.assert_array_equal(given.tokens, jax.vmap(lambda x, i: x[i])(x, other))


def test_router_with_nothing_to_choose() -> None:
    x = similarities(3, 4, 8)
    router = CoordinateDescentRouter(8, num_tokens=4, num_routes=2, rngs=nnx.Rngs(0))
    routed = router(x)
    assert routed.indices is None
    assert routed.margin is None
    np.testing.assert_array_equal(routed.tokens, jnp.stack([x, x], axis=1))
    with pytest.raises(
        ValueError, match="indices must be None if all tokens are selected; got 4 tokens, num_tokens=4"
    ):
        router(x, jnp.zeros((3, 2, 4), int))


def test_selection_ignores_temperature_and_sharpness() -> None:
    """With straight-through and ties broken by similarity, only the direction of the routing vector matters."""
    x = similarities(2, 32, 8)
    router = CoordinateDescentRouter(8, num_tokens=5, rngs=nnx.Rngs(0))
    cold = CoordinateDescentRouter(8, num_tokens=5, eps=0.1, rngs=nnx.Rngs(0))
    sharp = CoordinateDescentRouter(8, num_tokens=5, rngs=nnx.Rngs(0))
    sharp.routing_token.set_value(64 * router.routing_token[...])
    for other in (cold, sharp):
        np.testing.assert_array_equal(other(x).indices, router(x).indices)
        np.testing.assert_array_equal(other(x).scores, router(x).scores)


def test_gradient_is_finite_at_zero_vectors_with_cosine_similarity() -> None:
    router = CoordinateDescentRouter(8, num_tokens=5, cosine_sim_routing=True, rngs=nnx.Rngs(0))
    gradient = jax.grad(lambda x: jnp.sum(router(x).scores))(jnp.zeros((1, 9, 8)))
    assert jnp.isfinite(gradient).all()


def test_tokens_are_not_transposed_for_their_similarity() -> None:
    router = CoordinateDescentRouter(32, num_tokens=4, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 64, 32))

    text = jax.jit(lambda router, x: router.similarity(x)).lower(router, x).compile().as_text()
    assert "f32[32,256]" not in text
    assert "f32[32,4,64]" not in text
