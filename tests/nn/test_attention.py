"""`attend`, with and without blocks, against the textbook formula of attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels.nn import attend
from jaxmodels.nn.attention import BLOCK, AttentionModule


def naive(q, k, v, keep):
    """One query at a time, in NumPy; `keep` (b, h, i, j) is True where a query may attend to a key."""
    b, h, _, d = q.shape
    k, v = (np.broadcast_to(x, (b, h, *x.shape[2:])) for x in (k, v))
    logits = np.einsum("bhik,bhjk->bhij", q, k) / np.sqrt(d)
    logits = np.where(keep, logits, np.finfo(logits.dtype).min)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("bhij,bhjk->bhik", weights / weights.sum(axis=-1, keepdims=True), v)


def arrays(i, j, heads_of_keys=2, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.standard_normal(shape))
        for shape in ((2, 2, i, 4), (2, heads_of_keys, j, 4), (2, heads_of_keys, j, 3))
    ]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("heads_of_keys", [1, 2])
@pytest.mark.parametrize(
    ("i", "j"),
    [(1, 1), (5, 5), (BLOCK, BLOCK), (BLOCK + 1, BLOCK + 1), (2 * BLOCK + 7, 2 * BLOCK + 7), (3, 300)],
)
def test_causal(i, j, heads_of_keys) -> None:
    q, k, v = arrays(i, j, heads_of_keys)
    past = np.tril(np.ones((i, j), bool), j - i)

    result = jax.jit(lambda q, k, v: attend(q, k, v, causal=True))(q, k, v)
    np.testing.assert_allclose(result, naive(q, k, v, past), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("queries", [1, 300])
def test_causal_with_a_mask(queries) -> None:
    q, k, v = arrays(300, 300)
    mask = np.random.default_rng(1).random((2, 1, queries, 300)) < 0.5
    mask = mask | np.eye(300, dtype=bool) if queries > 1 else mask | (np.arange(300) == 0)
    past = np.tril(np.ones((300, 300), bool))

    result = attend(q, k, v, mask=jnp.asarray(mask), causal=True)
    np.testing.assert_allclose(result, naive(q, k, v, mask & past), rtol=1e-11, atol=1e-13)


def test_gradients_of_blocks() -> None:
    q, k, v = arrays(BLOCK + 9, BLOCK + 9)
    past = jnp.tril(jnp.ones((1, 1, BLOCK + 9, BLOCK + 9), bool))

    def loss(q, k, v, **how):
        return jnp.sin(attend(q, k, v, **how)).sum()

    in_blocks = jax.grad(lambda *x: loss(*x, causal=True), argnums=(0, 1, 2))(q, k, v)
    at_once = jax.grad(lambda *x: loss(*x, mask=past), argnums=(0, 1, 2))(q, k, v)
    for a, b in zip(in_blocks, at_once, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_a_query_without_keys_gets_the_average() -> None:
    q, k, v = arrays(3, 5)
    keep = np.ones((1, 1, 3, 5), bool)
    keep[..., 1, :] = False

    result = attend(q, k, v, mask=jnp.asarray(keep))
    np.testing.assert_allclose(result[:, :, 1], v.mean(axis=2), rtol=1e-12)
    np.testing.assert_allclose(result, naive(q, k, v, keep), rtol=1e-11)


@pytest.mark.parametrize(
    ("i", "j", "causal"), [(0, 0, False), (0, 4, False), (3, 0, False), (0, 0, True), (0, 4, True)]
)
def test_nothing_to_look_at(i, j, causal) -> None:
    result = attend(*map(jnp.asarray, arrays(i, j)), causal=causal)

    np.testing.assert_array_equal(result, np.zeros((2, 2, i, 3)))


def test_large_logits_stay_finite() -> None:
    q, k, v = arrays(4, 4)
    result = attend(1e4 * q, 1e4 * k, v)

    np.testing.assert_allclose(result, naive(1e4 * q, 1e4 * k, v, True), rtol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_float16_does_not_overflow(dtype) -> None:
    """The undivided sum of 4096 values of 30 is 122,880, too large for float16."""
    q, k = jnp.zeros((1, 1, 2, 4), dtype), jnp.zeros((1, 1, 4096, 4), dtype)
    result = attend(q, k, jnp.full((1, 1, 4096, 3), 30, dtype))

    assert result.dtype == dtype
    np.testing.assert_array_equal(result, np.full((1, 1, 2, 3), 30))


def test_dropout_sees_the_softmax() -> None:
    q, k, v = arrays(4, 6)
    seen = []

    def dropout(weights):
        seen.append(weights)
        return weights.at[..., 0].set(0)

    result = attend(q, k, v, dropout=dropout)
    np.testing.assert_allclose(seen[0].sum(axis=-1), np.ones((2, 2, 4)), rtol=1e-12)
    np.testing.assert_allclose(
        result, np.einsum("bhij,bhje->bhie", seen[0][..., 1:], v[:, :, 1:]), rtol=1e-12
    )


def test_a_mask_of_keys_may_leave_a_causal_query_without_any() -> None:
    """It gets the mean of all values, as without blocks and in PyTorch."""
    q, k, v = arrays(BLOCK + 3, BLOCK + 3)
    mask = jnp.arange(BLOCK + 3) >= 2
    keep = np.tril(np.ones((BLOCK + 3, BLOCK + 3), bool)) & np.asarray(mask)

    result = attend(q, k, v, mask=mask[None, None, None], causal=True)
    np.testing.assert_allclose(result, naive(q, k, v, keep), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(result[:, :, :2], np.stack([v.mean(axis=2)] * 2, axis=2), rtol=1e-12)


@pytest.mark.usefixtures("unchecked_types")
def test_an_unknown_implementation() -> None:
    message = "attention must be 'auto' or 'xla' or 'cudnn' or 'pallas'; got attention='flash'"
    with pytest.raises(ValueError, match=message):
        nnx.view(AttentionModule(), attention="flash")
