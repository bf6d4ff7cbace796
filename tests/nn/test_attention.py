"""`attend`, with and without blocks, against the textbook formula of attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels import SimpleViT, SimpleViTConfig
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


@pytest.fixture
def kernel_in_place_of_cudnn(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Replaces cuDNN's kernel by JAX's own attention, and returns the arguments of its calls."""
    calls = []
    real = jax.nn.dot_product_attention

    def stand_in(q, k, v, *, mask, is_causal, implementation):
        assert implementation == "cudnn"
        calls.append({"mask": mask, "is_causal": is_causal})
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return real(q, k, v, mask=mask, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    return calls


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("i", [4, 10])
def test_fused_attention_is_the_same_attention(
    i: int, causal: bool, masked: bool, heads: int, kernel_in_place_of_cudnn: list[dict]
) -> None:
    """With a tolerance for bfloat16's 8 bits."""
    q, k, v = (
        jax.random.normal(jax.random.key(n), (2, h, length, 16), jnp.bfloat16)
        for n, (h, length) in enumerate([(3, i), (heads, 10), (heads, 10)])
    )
    mask = jnp.arange(10)[None, None, None] < jnp.asarray([10, 7])[:, None, None, None] if masked else None
    if masked and causal:
        mask = mask.at[..., 0].set(True)

    fused = attend(q, k, v, mask=mask, causal=causal, implementation="cudnn")

    plain = attend(q, k, v, mask=mask, causal=causal)
    np.testing.assert_allclose(fused.astype(jnp.float32), plain.astype(jnp.float32), rtol=0, atol=2e-2)
    assert len(kernel_in_place_of_cudnn) == 1


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((1, 2, 6, 16), jnp.float32, {}),
        ((1, 2, 6, 12), jnp.bfloat16, {}),
        ((1, 2, 6, 136), jnp.bfloat16, {}),
        ((1, 2, 0, 16), jnp.bfloat16, {}),
        ((1, 2, 5, 16), jnp.bfloat16, {"mask": jnp.ones((1, 1, 1, 5), bool)}),
        ((1, 2, 6, 16), jnp.bfloat16, {"dropout": lambda x: x}),
    ],
)
def test_what_the_kernel_cannot_do_goes_the_usual_way(
    shape, dtype, options, kernel_in_place_of_cudnn: list[dict]
) -> None:
    x = jnp.ones(shape, dtype)

    assert attend(x, x, x, implementation="cudnn", **options).shape == shape
    assert not kernel_in_place_of_cudnn


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_the_kernel_itself() -> None:
    q, k, v = (jax.random.normal(jax.random.key(n), (2, 4, 256, 64), jnp.bfloat16) for n in range(3))

    for causal in (False, True):
        fused = jax.jit(lambda *a, c=causal: attend(*a, causal=c, implementation="cudnn"))(q, k, v)
        plain = attend(*(x.astype(jnp.float32) for x in (q, k, v)), causal=causal)
        np.testing.assert_allclose(fused.astype(jnp.float32), plain, rtol=0, atol=2e-2)


def test_one_view_sends_every_attention_through_the_kernel(kernel_in_place_of_cudnn: list[dict]) -> None:
    encoder = SimpleViT(
        SimpleViTConfig(image_size=16, patch_size=8, num_classes=2, dim=16, depth=2, heads=2, mlp_dim=16),
        dtype=jnp.bfloat16,
        rngs=nnx.Rngs(0),
    )

    nnx.view(encoder, attention="cudnn")(jnp.ones((1, 16, 16, 3)))

    assert len(kernel_in_place_of_cudnn) == 2


@pytest.mark.usefixtures("unchecked_types")
def test_an_unknown_implementation() -> None:
    with pytest.raises(ValueError, match="attention must be 'xla' or 'cudnn'; got attention='flash'"):
        nnx.view(AttentionModule(), attention="flash")
