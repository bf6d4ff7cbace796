"""Coordinate descent and the router: recorded numbers, the published function, ties and precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from colt5_attention import coor_descent
from flax import nnx

from jaxmodels.nn.coordinate_descent import CoordinateDescentRouter, coordinate_descent
from torch_reference import coordinate_descent as reference_descent


SIMILARITIES = np.array([0.5, -1, 2, 0.1, 3, -0.7, 1.2, 0.9])
ANNEALED = {"n_iters": 20, "eps_init": 4.0, "eps_decay": 0.7}
DESCENTS = [
    pytest.param(
        {"k": 2.25, "eps": 1.0, **ANNEALED}, None,
        [0.122766598251, 0.0273929307287, 0.550201721585, 0.0822929117914, 1, 0.0369765888094, 0.247221569615, 0.183146243317],
        id="annealed",
    ),
    pytest.param(
        {"k": 2.25, "eps": 0.03, **ANNEALED}, None,
        [8.24549250972e-22, 1.59034924245e-43, 1, 1.33543732198e-27, 1, 3.50297731906e-39, 1.12138440622e-11, 5.09107732792e-16],
        id="cold",
    ),
    pytest.param(
        {"k": 4.5, "eps": 0.1, "n_iters": 5, "eps_init": None, "eps_decay": 1.0}, None,
        [1, 8.76759741459e-06, 1, 0.524952370103, 1, 0.000176101901598, 1, 1],
        id="constant",
    ),
    pytest.param(
        {"k": 8, "eps": 1.0, **ANNEALED}, None, [1, 0.933399393014, 1, 1, 1, 1, 1, 1], id="all",
    ),
    pytest.param(
        {"k": 2.25, "eps": 1.0, **ANNEALED}, [1, 1, 1, 1, 0, 1, 0, 1],
        [0.339077435675, 0.0756584025248, 1, 0.227290402291, 0, 0.102128161015, 0, 0.505844092952],
        id="masked",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "mask", "expected"), DESCENTS)
def test_golden_descent(options, mask, expected) -> None:
    keep = None if mask is None else np.array(mask, bool)
    s = torch.from_numpy(SIMILARITIES)
    theirs = reference_descent.coordinate_descent(
        s, mask=None if keep is None else torch.from_numpy(keep), **options
    )
    mine = coordinate_descent(
        jnp.asarray(SIMILARITIES), mask=None if keep is None else jnp.asarray(keep), **options
    )
    for scores in (theirs.numpy(), np.asarray(mine)):
        np.testing.assert_allclose(scores, expected, rtol=1e-11, atol=0)


def test_golden_gradient_of_the_descent() -> None:
    expected = [-0.424762295978, -0.0673843483979, -0.803249096205, -0.0378479464198]
    expected += [-1.93256441e-05, 0.05694699906, 0.627963194135, 0.648352819449]
    options = {"k": 2.25, "eps": 1.0, **ANNEALED}
    s = torch.from_numpy(SIMILARITIES).requires_grad_()
    (reference_descent.coordinate_descent(s, **options) * torch.arange(1, 9)).sum().backward()
    mine = jax.jit(jax.grad(lambda s: jnp.sum(coordinate_descent(s, **options) * np.arange(1, 9))))(
        jnp.asarray(SIMILARITIES)
    )
    for gradient in (s.grad.numpy(), np.asarray(mine)):
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("k", [1, 2.25, 7, 8])
@pytest.mark.parametrize(("eps", "n_iters"), [(1.0, 20), (0.03, 20), (0.5, 3)])
def test_descent_is_the_package_s(k, eps, n_iters) -> None:
    """Values and gradients of rows with a large and a small range, tied, masked and fully masked."""
    rng = np.random.default_rng(0)
    s = rng.normal(size=(12, 8)) * np.repeat([0.1, 1, 8], 4)[:, None]
    s[3] = 0
    mask = rng.random((12, 8)) < 0.7
    mask[5] = False
    weights = rng.normal(size=s.shape)
    options = {"k": k, **ANNEALED, "eps": eps, "n_iters": n_iters}
    results = []
    for function in (coor_descent, reference_descent.coordinate_descent):
        t = torch.from_numpy(s).requires_grad_()
        budget = {"k": torch.full((12,), float(k), dtype=t.dtype)} if function is coor_descent else {}
        scores = function(t, mask=torch.from_numpy(mask), **options | budget)
        (scores * torch.from_numpy(weights)).sum().backward()
        results.append((scores.detach().numpy(), t.grad.numpy()))

    @jax.jit
    def ours(s: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores, back = jax.vjp(lambda s: coordinate_descent(s, mask=jnp.asarray(mask), **options), s)
        return scores, back(jnp.asarray(weights))[0]

    scores, gradient = ours(jnp.asarray(s))
    results.append((np.asarray(scores), np.asarray(gradient)))
    for scores, gradient in results[1:]:
        np.testing.assert_allclose(scores, results[0][0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(gradient, results[0][1], rtol=0, atol=1e-11 / eps)
        assert not scores[5].any()
        assert not gradient[5].any()


def test_gradient_where_nothing_is_cut_off() -> None:
    """With s = 0 and k = n every constraint holds with equality; there the slope of PyTorch's relu is 0."""
    options = {"k": 4, "eps": 1.0, **ANNEALED}
    s = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    weights = [1.0, -2.0, 3.0, 5.0]
    (reference_descent.coordinate_descent(s, **options) * torch.tensor(weights)).sum().backward()
    mine = jax.jit(jax.grad(lambda s: jnp.sum(coordinate_descent(s, **options) * np.array(weights))))(
        jnp.zeros(4)
    )
    np.testing.assert_allclose(mine, s.grad.numpy(), rtol=0, atol=1e-14)
    assert np.abs(mine).max() > 1


@pytest.mark.parametrize("tie_break", ["similarity", "index"])
def test_equal_similarities_select_the_first(tie_break) -> None:
    x = np.random.default_rng(0).normal(size=(2, 9, 4))
    theirs = reference_descent.CoordinateDescentRouter(4, num_tokens=3, tie_break=tie_break).double()
    ours = CoordinateDescentRouter(4, num_tokens=3, tie_break=tie_break, rngs=nnx.Rngs(0))
    with torch.no_grad():
        theirs.routing_token.zero_()
    ours.routing_token.set_value(jnp.zeros((1, 4)))
    for routed in (theirs(torch.from_numpy(x)), jax.jit(lambda model, x: model(x))(ours, jnp.asarray(x))):
        assert np.asarray(routed.indices).tolist() == [[[0, 1, 2]]] * 2
        assert not np.asarray(routed.margin).any()


def test_routing_is_computed_in_float32() -> None:
    """bfloat16 activations: similarities, scores and order come from float32 products, on both sides."""
    x = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    theirs = reference_descent.CoordinateDescentRouter(32, num_tokens=9)
    ours = CoordinateDescentRouter(32, num_tokens=9, rngs=nnx.Rngs(0))
    ours.routing_token.set_value(jnp.asarray(theirs.routing_token.detach().numpy()))
    exact = theirs.double()(x.double())
    mine, other = ours(jnp.asarray(x.float().numpy(), jnp.bfloat16)), theirs.float()(x)
    for routed in (mine, other):
        np.testing.assert_array_equal(np.asarray(routed.indices), exact.indices.numpy())
        assert str(routed.tokens.dtype).endswith("bfloat16")
        assert str(routed.scores.dtype).endswith("bfloat16")
        assert str(routed.margin.dtype).endswith("float32")
