"""Hourglass Transformer beyond the rows; what it can get wrong, and the test that notices.

| hazard | caught by |
| --- | --- |
| GELU, LayerNorm epsilon, normed context, un-normed self, k/v order, head split, scale | goldens H1–H9 (test_hourglass_goldens.py), rows |
| LayerNorm's variance far from zero | `test_norm_far_from_zero_in_float32`, row `embeddings` |
| -inf for -finfo.max, zeros for a row of masked keys | goldens H4–H6, H9, row `mask of nothing` |
| shift, residual, mask shift, padding side, masked mean, any/all | goldens H1–H6, mask rows |
| tile/repeat, (d s)/(s d), resampler context | goldens H1, H3, H6, rows |
| leakage, wrong prefix | tests/models/test_hourglass.py |
| ids and lengths out of range | tests/models/test_hourglass.py, test_hourglass_errors.py |
| top-k ties, drawn tokens | test_hourglass_generation.py |
| one compiled loop for all lengths | golden H12 crosses max_seq_len; tests/models/test_hourglass.py counts traces |
"""

from dataclasses import asdict

import hourglass_transformer_pytorch.hourglass_transformer_pytorch as published
import jax
import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmodels as jm
import torch_reference
from parity_tests.harness import AS_USERS, assert_layout_matches
from parity_tests.hourglass_pairs import (
    H1,
    golden_pair,
    ids,
    ours_with,
    outputs,
)


def test_reference_transformer_matches_the_package() -> None:
    """Options and inputs of `Transformer` that neither published model uses."""
    for options in ({"norm_out": True, "ff_mult": 2}, {"causal": True}):
        sizes = {"depth": 2, "heads": 2, "dim_head": 3, "attn_dropout": 0.3, "ff_dropout": 0.2} | options
        theirs = published.Transformer(6, **sizes).double()
        reference = torch_reference.hourglass.Transformer(6, **sizes).double()
        assert_layout_matches(reference, theirs)
        x, context = torch.randn(2, 4, 6).double(), torch.randn(2, 5, 6).double()
        mask = torch.tensor([[True, True, False, True, False], [True] * 5])
        for train in (False, True):
            torch.manual_seed(0)
            expected = theirs.train(train)(x, context=context, mask=mask)
            torch.manual_seed(0)
            actual = reference.train(train)(x, context=context, mask=mask)
            np.testing.assert_allclose(actual.detach(), expected.detach(), rtol=0, atol=1e-12)


def test_norm_far_from_zero_in_float32() -> None:
    config = jm.HourglassTransformerConfig(
        dim=64, depth=(0, 0, 0), shorten_factor=1, attn_resampling=False, norm_out=True, heads=1, dim_head=1
    )
    reference = torch_reference.HourglassTransformer(**asdict(config))
    x = (100 + 0.01 * np.random.default_rng(0).normal(size=(2, 8, 64))).astype(np.float32)
    theirs, actual = outputs(reference, ours_with(config, reference), x)
    # The residual doubles x to 200 ± 0.02; a mean rounded by four units in the last place moves the output so far:
    tolerance = 4 * float(np.spacing(np.float32(200))) / 0.02
    exact = 2 * x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    for out in (theirs, actual):
        np.testing.assert_allclose(out, exact, rtol=0, atol=tolerance)


def test_full_optimisation_agrees() -> None:
    reference, ours = golden_pair(**H1)
    theirs = reference(torch.from_numpy(ids(2, 11))).detach().numpy()
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        actual = np.asarray(
            jax.jit(compiler_options=AS_USERS)(lambda model, x: model(x))(ours, jnp.asarray(ids(2, 11)))
        )
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    np.testing.assert_allclose(actual, theirs, rtol=0, atol=1e-13)


def depths(levels: int) -> st.SearchStrategy:
    """Depths with exactly `levels` nested hourglasses."""
    count = st.integers(0, 1)
    return count if levels == 0 else st.tuples(count, depths(levels - 1), count)


@st.composite
def configurations(draw) -> jm.HourglassTransformerLMConfig:
    levels = draw(st.integers(0, 2))
    factors = tuple(draw(st.integers(1, 4)) for _ in range(levels))
    return jm.HourglassTransformerLMConfig(
        num_tokens=draw(st.integers(1, 7)),
        dim=draw(st.integers(1, 6)),
        max_seq_len=9,
        depth=draw(depths(levels)),
        shorten_factor=factors or None,
        heads=draw(st.integers(1, 3)),
        dim_head=draw(st.integers(1, 3)),
        attn_resampling=draw(st.booleans()),
        updown_sample_type=draw(st.sampled_from(["naive", "linear"])),
        causal=draw(st.booleans()),
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(configurations(), st.integers(1, 9), st.booleans())
def test_random_configurations(config, n, masked) -> None:
    torch.manual_seed(1)
    reference = torch_reference.HourglassTransformerLM(**asdict(config)).double()
    rng = np.random.default_rng(2)
    mask = rng.random((2, n)) < 0.6 if masked else None
    theirs, actual = outputs(
        reference, ours_with(config, reference), rng.integers(0, config.num_tokens, (2, n)), mask
    )
    np.testing.assert_allclose(actual, theirs, rtol=0, atol=1e-9)
