"""The Hourglass Transformer without PyTorch: errors, gradients, causality, masks, sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmodels import (
    HourglassTransformer,
    HourglassTransformerConfig,
    HourglassTransformerLM,
    HourglassTransformerLMConfig,
    generation,
)
from jaxmodels.generation import generate, next_token_loss
from tests.properties import check_batch, check_bfloat16, check_gradients, check_jit


CONFIG = HourglassTransformerLMConfig(
    num_tokens=11, dim=8, max_seq_len=12, depth=(1, 1, 0), shorten_factor=3, heads=2, dim_head=4
)


@jax.jit
def forward(model: nnx.Module, *inputs: jax.Array) -> jax.Array:
    return model(*inputs)


@pytest.fixture(scope="module")
def model() -> HourglassTransformerLM:
    return HourglassTransformerLM(CONFIG, rngs=nnx.Rngs(0))


def tokens(b: int = 3, n: int = 7, seed: int = 0) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (b, n), 0, CONFIG.num_tokens)


def embeddings(config: HourglassTransformerConfig, b: int = 2, n: int = 7) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (b, n, config.dim))


def build(**changes) -> HourglassTransformer:
    """A small hourglass; depth and factors as given."""
    arguments = {"dim": 4, "depth": (1, 1, 0), "heads": 1, "dim_head": 2} | changes
    return HourglassTransformer(HourglassTransformerConfig(**arguments), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": 0}, r"num_tokens must be an integer ≥ 1; got num_tokens=0"),
        ({"dim": 8.0}, r"dim must be an integer ≥ 1; got dim=8\.0"),
        ({"max_seq_len": 0}, r"max_seq_len must be an integer ≥ 1; got max_seq_len=0"),
        ({"heads": 0}, r"heads must be an integer ≥ 1; got heads=0"),
        ({"dim_head": True}, r"dim_head must be an integer ≥ 1; got dim_head=True"),
        ({"depth": (1, 1)}, r"depth must be an integer or \(pre, valley, post\); got depth=\(1, 1\)"),
        ({"depth": (1, (1, 1), 1)}, r"depth must be an integer or \(pre, valley, post\); got depth=\(1, 1\)"),
        ({"depth": (-1, 1, 1)}, r"depth before the valley must be an integer ≥ 0; got .*=-1"),
        ({"depth": (1, 1, True)}, r"depth after the valley must be an integer ≥ 0; got .*=True"),
        ({"depth": "deep"}, r"depth must be an integer ≥ 0; got depth='deep'"),
        ({"depth": 2}, r"shorten_factor must be None when depth is an integer; got shorten_factor=3"),
        ({"shorten_factor": None}, r"shorten_factor must be an integer ≥ 1; got shorten_factor=None"),
        ({"shorten_factor": 0}, r"shorten_factor must be an integer ≥ 1; got shorten_factor=0"),
        ({"shorten_factor": 2.0}, r"shorten_factor must be an integer ≥ 1; got shorten_factor=2\.0"),
        ({"shorten_factor": (2, 3)}, r"one entry per hourglass level, 1 for this depth; got .*=\(2, 3\)"),
        ({"shorten_factor": ()}, r"one entry per hourglass level, 1 for this depth; got .*=\(\)"),
        ({"updown_sample_type": "mean"}, r"updown_sample_type must be 'naive' or 'linear'; got .*='mean'"),
        ({"causal": 1}, r"causal must be a bool; got causal=1"),
        ({"attn_resampling": None}, r"attn_resampling must be a bool; got attn_resampling=None"),
    ],
)
def test_wrong_configuration(changes, message) -> None:
    sizes = {"num_tokens": 11, "dim": 8, "max_seq_len": 12, "depth": (1, 1, 1), "shorten_factor": 3}
    with pytest.raises(ValueError, match=message):
        HourglassTransformerLMConfig(**sizes | changes)


def test_wrong_configuration_of_the_hourglass() -> None:
    with pytest.raises(ValueError, match=r"depth must be \(pre, valley, post\); got depth=2"):
        HourglassTransformerConfig(dim=8, depth=2, shorten_factor=None)
    with pytest.raises(ValueError, match=r"norm_out must be a bool; got norm_out='yes'"):
        HourglassTransformerConfig(dim=8, depth=(1, 1, 1), norm_out="yes")


def test_lists_become_tuples() -> None:
    config = HourglassTransformerConfig(dim=8, depth=[1, [1, 2, 1], 1], shorten_factor=[2, 3])
    assert (config.depth, config.shorten_factor) == ((1, (1, 2, 1), 1), (2, 3))
    assert hash(config) == hash(
        HourglassTransformerConfig(dim=8, depth=(1, (1, 2, 1), 1), shorten_factor=(2, 3))
    )


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"tokens": jnp.zeros(7, int)}, r"tokens must have shape \(b, n\); got tokens\.shape=\(7,\)"),
        ({"tokens": jnp.zeros((2, 7))}, r"tokens must be integer ids; got tokens\.dtype=float32"),
        ({"tokens": jnp.zeros((2, 0), int)}, r"tokens must have at least one position; got .*\(2, 0\)"),
        ({"tokens": jnp.zeros((2, 13), int)}, r"at most max_seq_len=12 positions; got 13"),
        ({"tokens": jnp.full((2, 7), 11)}, r"ids in \[0, num_tokens=11\); got ids from 11 to 11"),
        ({"tokens": jnp.full((2, 7), -1)}, r"ids in \[0, num_tokens=11\); got ids from -1 to -1"),
        ({"mask": jnp.ones((2, 6), bool)}, r"mask must have shape \(2, 7\); got mask\.shape=\(2, 6\)"),
        ({"mask": jnp.ones((2, 7), int)}, r"mask must be bool, True where others may look; got .*int32"),
    ],
)
def test_wrong_call(model, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        model(**{"tokens": tokens(2)} | call)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.zeros((2, 7, 5)), r"x must have shape \(b, n, 4\); got x\.shape=\(2, 7, 5\)"),
        (jnp.zeros((2, 0, 4)), r"x must have at least one position"),
        (jnp.zeros((2, 7, 4), int), r"x must be floating-point; got x\.dtype=int32"),
    ],
)
def test_wrong_embeddings(x, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()(x)


def test_ids_are_checked_only_where_they_are_known(model) -> None:
    """A compiled function cannot check its arguments, but it checks constants."""
    wrong = jnp.full((1, 3), 99)
    assert jnp.isfinite(jax.jit(lambda model, x: model(x))(model, wrong)).all()
    with pytest.raises(ValueError, match="got ids from 99 to 99"):
        jax.jit(lambda model: model(wrong))(model)


def test_jit(model) -> None:
    check_jit(model, tokens())


def test_batch(model) -> None:
    mask = jnp.asarray([[1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1, 1], [1] * 7], bool)
    check_batch(model, tokens(), mask, call=forward)
    assert model(tokens()[:0]).shape == (0, 7, 11)


def test_gradients(model) -> None:
    check_gradients(model, tokens())


def test_bfloat16() -> None:
    check_bfloat16(
        lambda dtype: HourglassTransformerLM(CONFIG, dtype=dtype, rngs=nnx.Rngs(0)),
        tokens(),
        call=forward,
        distance=0.1,
    )
    x = embeddings(build().config)
    in_bfloat16 = HourglassTransformer(build().config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert forward(in_bfloat16, x).dtype == jnp.bfloat16


def test_gradients_are_finite_at_zero() -> None:
    """Every LayerNorm gets rows of zeros: from a constant input, and from padding and shift."""
    hourglass_ = build(shorten_factor=3, causal=True, norm_out=True)
    x = jnp.zeros((2, 7, 4))
    mask = jnp.zeros((2, 7), bool)
    for arguments in ((x,), (x, mask)):
        gradient = jax.jit(jax.grad(lambda x, *rest: jnp.sum(jnp.sin(hourglass_(x, *rest)))))(*arguments)
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("sample_type", ["naive", "linear"])
@pytest.mark.parametrize("resampling", [True, False])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, (2, 3), (3, 2)], ids=str)
def test_no_position_sees_its_future_and_all_see_their_past(sample_type, resampling, factor) -> None:
    depth = (1, 1, 0) if isinstance(factor, int) else (1, (0, 1, 0), 0)
    causal = build(
        depth=depth,
        shorten_factor=factor,
        causal=True,
        attn_resampling=resampling,
        updown_sample_type=sample_type,
    )
    for n in (7, 12, 13) if (factor, sample_type) == ((2, 3), "naive") else (13,):
        x = embeddings(causal.config, 1, n)
        changed = (
            x + jnp.eye(n)[:, :, None] * jnp.arange(4.0)[None, None]
        )  # row t differs from x at position t
        out = np.asarray(forward(causal, jnp.concatenate([x, changed])))
        effect = np.abs(out[1:] - out[0]).max(axis=-1)  # [t, position]
        later = np.triu(np.ones((n, n), bool))
        assert effect[later].min() > 1e-6
        assert effect[~later].max() < 1e-6


def test_a_prefix_is_the_prefix_of_a_longer_run() -> None:
    """The output at a position depends neither on the padding nor on later positions."""
    causal = build(depth=(1, (0, 1, 0), 0), shorten_factor=(2, 3), causal=True)
    x = embeddings(causal.config, 1, 14)
    full = forward(causal, x)
    for n in (1, 4, 6, 7, 11):
        np.testing.assert_allclose(forward(causal, x[:, :n]), full[:, :n], rtol=0, atol=2e-6)


def test_mask() -> None:
    ones = jnp.ones((2, 6), bool)
    x = embeddings(build().config, 2, 6)
    for causal in (False, True):
        model = build(shorten_factor=3, causal=causal)
        difference = jnp.abs(forward(model, x) - forward(model, x, ones)).max()
        # The zeros that a causal model shifts in are hidden by a mask only.
        assert (difference > 1e-3) if causal else (difference < 1e-6)

    # Keys only, and shortening ignores it: a partly masked bucket leaks into all positions, a fully masked one does not.
    model = build(shorten_factor=3)
    for masked, leaks in ((jnp.arange(6) >= 4, True), (jnp.arange(6) >= 3, False)):
        mask = jnp.broadcast_to(~masked, (2, 6))
        changed = jnp.where(masked[None, :, None], x + jnp.arange(4.0)[None, None], x)
        effect = jnp.abs(forward(model, x, mask) - forward(model, changed, mask)).max(axis=(0, 2))
        assert (effect[:3] > 1e-6).all() if leaks else (effect[:3] < 1e-6).all()
        assert (effect[masked] > 1e-3).all()


def test_all_keys_masked_is_the_plain_average() -> None:
    """Queries whose keys are all masked get the mean of the values, not NaN or zero."""
    attention = build().pre_transformer.blocks[0].attn
    x = embeddings(build().config)
    out = attention(x, mask=jnp.zeros((2, 7), bool))
    average = attention.to_out(jnp.split(attention.to_kv(x), 2, axis=-1)[1].mean(axis=1, keepdims=True))
    np.testing.assert_allclose(out, jnp.broadcast_to(average, out.shape), rtol=0, atol=1e-6)
    assert jnp.isfinite(forward(build(), x, jnp.zeros((2, 7), bool))).all()


def test_one_key_needs_no_query() -> None:
    """The shortcut for a single key gives the result of the softmax, and a gradient of zero for to_q."""
    attention = build(heads=2).pre_transformer.blocks[0].attn
    x, context = embeddings(build().config), embeddings(build().config, n=1)
    twice = attention(x, jnp.concatenate([context, context], axis=1))
    np.testing.assert_allclose(attention(x, context), twice, rtol=0, atol=1e-6)
    gradient = jax.grad(lambda attention: jnp.sum(jnp.sin(attention(x, context))))(attention)
    assert not gradient.to_q.kernel[...].any()
    assert gradient.to_out.kernel[...].any()


def test_loss(model) -> None:
    ids = tokens(2, 8).at[0, 5:].set(0)
    loss = jax.jit(next_token_loss)
    logits, numbers = np.asarray(jax.nn.log_softmax(forward(model, ids[:, :-1]))), np.asarray(ids)
    counted = [-logits[i, j, numbers[i, j + 1]] for i in range(2) for j in range(7) if numbers[i, j + 1] != 0]
    np.testing.assert_allclose(loss(model, ids), np.mean(counted), rtol=1e-5)
    everything = [-logits[i, j, numbers[i, j + 1]] for i in range(2) for j in range(7)]
    np.testing.assert_allclose(loss(model, ids, -1), np.mean(everything), rtol=1e-5)
    mask = jnp.ones((2, 7), bool)
    assert loss(model, ids, mask=mask) != loss(model, ids)
    rough = HourglassTransformerLM(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert loss(rough, ids).dtype == jnp.float32


@pytest.mark.usefixtures("unchecked_types")
def test_loss_with_a_mask_for_the_tokens_instead_of_the_inputs(model) -> None:
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 7\)"):
        next_token_loss(model, tokens(2, 8), mask=jnp.ones((2, 8), bool))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": jnp.zeros((1, 0), int)}, r"start must have at least one position"),
        ({"start": jnp.zeros((1, 3))}, r"start must be integer ids"),
        ({"start": jnp.full((1, 3), 11)}, r"start must be ids in \[0, num_tokens=11\)"),
        ({"seq_len": -1}, r"seq_len must be an integer ≥ 0; got seq_len=-1"),
        ({"temperature": -1.0}, r"temperature must be finite and ≥ 0; got temperature=-1\.0"),
        ({"temperature": float("nan")}, r"temperature must be finite and ≥ 0"),
        ({"filter_thres": 1.5}, r"filter_thres must lie in \[0, 1\]; got filter_thres=1\.5"),
        ({"filter_thres": 0.5}, r"rngs must be given to draw tokens, as nnx\.Rngs\(0\), or temperature=0"),
    ],
)
def test_wrong_generation(model, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, **{"start": tokens(1, 3), "seq_len": 2} | arguments)


def test_generation_needs_a_causal_model() -> None:
    config = HourglassTransformerLMConfig(num_tokens=5, dim=4, max_seq_len=4, depth=1, causal=False)
    with pytest.raises(ValueError, match="model must be causal to generate; got a model with causal=False"):
        generate(HourglassTransformerLM(config, rngs=nnx.Rngs(0)), jnp.zeros((1, 2), int), 2)


def test_generation_is_the_naive_loop_and_compiles_once() -> None:
    """Greedy tokens equal those of a loop that calls the model on every prefix, also beyond max_seq_len."""
    config = HourglassTransformerLMConfig(
        num_tokens=11, dim=8, max_seq_len=6, depth=(0, 1, 1), shorten_factor=2, heads=2, dim_head=4
    )
    model = HourglassTransformerLM(config, rngs=nnx.Rngs(0))
    before = generation.sample._cache_size()
    for n, new in ((2, 9), (4, 5), (8, 6)):
        sequence = np.asarray(tokens(2, n, seed=n))
        for _ in range(new):
            logits = forward(model, sequence[:, -6:])[:, -1]
            sequence = np.concatenate([sequence, np.argmax(logits, axis=-1)[:, None]], axis=1)
        generated = generate(model, tokens(2, n, seed=n), new, temperature=0)
        np.testing.assert_array_equal(generated, sequence[:, n:])
    assert generation.sample._cache_size() - before == 2  # up to 6 and up to 12 new tokens


def test_sampling_is_reproducible(model) -> None:
    options = {"filter_thres": 0.0, "temperature": 2.0}
    first, again, other = (
        generate(model, tokens(2, 3), 12, **options, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
    assert set(np.asarray(first).ravel()) <= set(range(11))


def test_published_size() -> None:
    """The README's model: 38 597 888 parameters."""
    config = HourglassTransformerLMConfig(
        num_tokens=256, dim=512, max_seq_len=1024, depth=(4, 2, 4), shorten_factor=2
    )
    model = nnx.eval_shape(lambda: HourglassTransformerLM(config, rngs=nnx.Rngs(0)))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model))) == 38_597_888
    out = jax.eval_shape(lambda model, x: model(x), model, jax.ShapeDtypeStruct((2, 1023), jnp.int32))
    assert out.shape == (2, 1023, 256)


def depths(levels: int) -> st.SearchStrategy:
    """Depths with exactly `levels` nested hourglasses."""
    count = st.integers(0, 1)
    return count if levels == 0 else st.tuples(count, depths(levels - 1), count)


@st.composite
def configurations(draw) -> HourglassTransformerConfig:
    levels = draw(st.integers(1, 2))
    return HourglassTransformerConfig(
        dim=draw(st.integers(2, 5)),
        depth=draw(depths(levels)),
        shorten_factor=tuple(draw(st.integers(1, 4)) for _ in range(levels)),
        attn_resampling=draw(st.booleans()),
        updown_sample_type=draw(st.sampled_from(["naive", "linear"])),
        heads=draw(st.integers(1, 2)),
        dim_head=draw(st.integers(1, 3)),
        causal=draw(st.booleans()),
        norm_out=draw(st.booleans()),
    )


@settings(max_examples=5, deadline=None, derandomize=True)
@given(configurations(), st.integers(2, 9))
def test_random_configurations(config, n) -> None:
    """Outputs are finite and have the right shape; in causal models later tokens do not change them."""
    model = HourglassTransformer(config, rngs=nnx.Rngs(0))
    x = embeddings(config, 2, n)
    x = x.at[1, : n // 2].set(x[0, : n // 2])
    out = forward(model, x)
    assert out.shape == x.shape
    assert jnp.isfinite(out).all()
    if config.causal:
        np.testing.assert_allclose(out[0, : n // 2], out[1, : n // 2], rtol=0, atol=2e-6)
