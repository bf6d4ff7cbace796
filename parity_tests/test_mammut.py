"""MaMMUT beyond the rows: modes, quirks, precision. This table spans all of its test files.

| hazard | caught by |
| --- | --- |
| norm epsilon, SwiGLU halves, rotary pairing and values, split order, scale, CLS place and mask, text norm | goldens M1, M2, M6, M7, rows |
| inv_freq recomputed in float64 | goldens (3e-10 against 1e-13), `test_stored_frequencies_are_used` |
| pads masked for all rows | golden M6, rows `logits`, `embeddings` |
| pool residual, context norm, CLS query, un-normed feed-forward | goldens M1, M2, rows |
| temperature, unnormalised latents, the half, mean over pads, untrimmed text | goldens M3–M5, M9 |
| gradient of the norm at zero latents | `test_zero_latents_have_the_package_s_gradient` |
| tied embedding, beta and inv_freq in the state_dict | `test_weights`, `test_buffers_are_checked` |
| a buffer that is trained | tests/models/test_mammut.py |
| fully masked rows | golden M7 |
| pad targets outside the vocabulary | row `pad_id` |
| broadcast of a single image | tests/models/test_mammut.py, `test_errors_where_the_package_is_silent` |
| gathering: labels, gradients, unequal batches | `test_processes_agree_with_one`, `test_two_jax_processes_agree_with_pytorch` |
| positions in bfloat16, caches that outlive a change of type | `test_bfloat16_models_keep_positions_apart` |
"""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import mammut_pytorch
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmodels as jm
import torch_reference
from parity_tests.harness import AS_USERS
from parity_tests.mammut_pairs import GOLDEN, IMAGE_TOKENS, LABELS, TEXT, both, fill, golden_pair, to_jax


@pytest.fixture(scope="module")
def pair() -> tuple[torch_reference.MaMMUT, jm.MaMMUT]:
    return golden_pair()


@pytest.mark.parametrize(
    ("method", "inputs"), [("embed_text", {"text": TEXT}), ("embed_image", {"image_tokens": IMAGE_TOKENS})]
)
def test_parts_match_the_package(pair, method, inputs) -> None:
    published = fill(mammut_pytorch.MaMMUT(**GOLDEN))
    expected = getattr(published, method)(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    for out in both(pair, method, **inputs):
        for actual, tensor in zip(out, expected, strict=True):
            np.testing.assert_allclose(actual, tensor.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"return_embeddings": True},
        {"return_loss": True},
        {"return_loss": True, "return_embeddings": True},
        {"return_loss": True, "labels": torch.from_numpy(LABELS)},
        {"return_loss": True, "return_embeddings": True, "labels": torch.from_numpy(LABELS)},
        {"labels": torch.from_numpy(LABELS)},
    ],
    ids=lambda arguments: "+".join(arguments) or "none",
)
def test_forward_is_the_package_s_in_every_mode(pair, arguments) -> None:
    published = fill(mammut_pytorch.MaMMUT(**GOLDEN))
    inputs = {"text": torch.from_numpy(TEXT), "image_tokens": torch.from_numpy(IMAGE_TOKENS)} | arguments
    actual, expected = pair[0](**inputs), published(**inputs)
    assert isinstance(actual, tuple) == isinstance(expected, tuple)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_texts_without_targets(pair) -> None:
    """The caption loss is NaN, as in the package: a mean over nothing. The contrastive loss stays finite."""
    published = fill(mammut_pytorch.MaMMUT(**GOLDEN))
    for text in (np.zeros((2, 4), np.int64), TEXT[:, :1]):
        theirs = published(
            torch.from_numpy(text), image_tokens=torch.from_numpy(IMAGE_TOKENS), return_loss=True
        )
        assert torch.isnan(theirs)
        for total, caption, contrastive in both(pair, "loss", text=text, image_tokens=IMAGE_TOKENS):
            assert np.isnan(total)
            assert np.isnan(caption)
            assert np.isfinite(contrastive)


def test_zero_latents_have_the_package_s_gradient() -> None:
    """With projections of zero every latent is 0, where a naive norm has gradient NaN."""
    reference, published = (fill(kind(**GOLDEN)) for kind in (torch_reference.MaMMUT, mammut_pytorch.MaMMUT))
    arguments = {"image_tokens": torch.from_numpy(IMAGE_TOKENS), "return_loss": True}
    for model in (reference, published):
        with torch.no_grad():
            model.text_to_latents.to_latents.weight.zero_()
        model(torch.from_numpy(TEXT), **arguments).backward()
    text, image_tokens = jnp.asarray(TEXT), jnp.asarray(IMAGE_TOKENS)
    ours = to_jax(reference, jm.MaMMUTConfig(**GOLDEN))
    gradients = jm.to_state_dict(
        jax.jit(jax.grad(lambda model: model.loss(text, image_tokens=image_tokens).total))(ours)
    )
    expected = published.text_to_latents.to_latents.weight.grad.numpy()
    assert np.abs(expected).max() > 1e10
    for actual in (
        reference.text_to_latents.to_latents.weight.grad.numpy(),
        gradients["text_to_latents.to_latents.weight"],
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_bfloat16_models_keep_positions_apart() -> None:
    """The package counts positions in the frequencies' type: in bfloat16, 256 and 257 are the same."""
    arguments = GOLDEN | {"depth": 1}
    published = fill(mammut_pytorch.MaMMUT(**arguments)).bfloat16()
    angles = published.layers[0][0].fn.rotary_emb(300, device=None)
    assert torch.equal(angles[256], angles[257])
    reference = fill(torch_reference.MaMMUT(**arguments)).bfloat16()
    ours = jm.load_state_dict(
        nnx.eval_shape(lambda: jm.MaMMUT(jm.MaMMUTConfig(**arguments), rngs=nnx.Rngs(0))),
        reference.state_dict(),
    )
    mine = np.asarray(ours.layers[0].block.rotary_emb(300))
    theirs = reference.layers[0][0].fn.rotary_emb(300).numpy()
    assert mine.dtype == theirs.dtype == np.float32
    assert len(np.unique(theirs[:, 0])) == 300
    np.testing.assert_array_equal(mine, theirs)


def test_changing_the_type_after_a_call() -> None:
    """The package keeps the angles of its first call in their first type."""
    text, image_tokens = torch.from_numpy(TEXT), torch.from_numpy(IMAGE_TOKENS).float()
    published, reference = (kind(**GOLDEN) for kind in (mammut_pytorch.MaMMUT, torch_reference.MaMMUT))
    for model in (published, reference):
        model(text, image_tokens=image_tokens)
        model.bfloat16()
    with pytest.raises(RuntimeError, match="type"):
        published(text, image_tokens=image_tokens.bfloat16())
    assert reference(text, image_tokens=image_tokens.bfloat16()).dtype == torch.bfloat16
    fresh = mammut_pytorch.MaMMUT(**GOLDEN).double()
    fresh.load_state_dict(reference.double().state_dict())
    torch.testing.assert_close(
        reference(text, image_tokens=image_tokens.double()),
        fresh(text, image_tokens=image_tokens.double()),
        rtol=0,
        atol=1e-13,
    )


def test_full_optimisation_agrees(pair) -> None:
    reference, ours = pair
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        actual = jax.jit(compiler_options=AS_USERS)(
            lambda model, text, tokens: (model(text, None, tokens), *model.loss(text, None, tokens))
        )(ours, jnp.asarray(TEXT), jnp.asarray(IMAGE_TOKENS))
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    text, image_tokens = torch.from_numpy(TEXT), torch.from_numpy(IMAGE_TOKENS)
    expected = reference(text, image_tokens=image_tokens), *reference.loss(text, image_tokens=image_tokens)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.detach().numpy(), rtol=0, atol=1e-13)


@st.composite
def configurations(draw: st.DrawFn) -> jm.MaMMUTConfig:
    depth = draw(st.integers(0, 2))
    layers = st.lists(st.integers(1, depth), unique=True).map(tuple) if depth else st.just(())
    return jm.MaMMUTConfig(
        dim=draw(st.integers(2, 9)),
        num_tokens=draw(st.integers(3, 9)),
        depth=depth,
        cross_attend_every=draw(st.integers(1, 2)),
        cross_attend_layers=draw(st.none() | layers),
        dim_latents=draw(st.none() | st.integers(1, 5)),
        image_dim=draw(st.none() | st.integers(2, 5)),
        num_img_queries=draw(st.integers(0, 3)),
        dim_head=2 * draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 3)),
        ff_mult=draw(st.integers(1, 3)),
        pad_id=draw(st.integers(-1, 3)),
    )


@settings(max_examples=6, deadline=None, derandomize=True)
@given(configurations(), st.integers(2, 6), st.integers(0, 3), st.integers(1, 3))
def test_random_configurations(config, n, m, b) -> None:
    torch.manual_seed(1)
    reference = torch_reference.MaMMUT(**asdict(config)).double()
    ours = to_jax(reference, config)
    rng = np.random.default_rng(2)
    text = rng.integers(0, config.num_tokens, size=(b, n))
    image_tokens = rng.normal(size=(b, m, config.image_dim or config.dim))
    for method in ("__call__", "loss"):
        theirs, mine = both((reference, ours), method, text=text, image_tokens=image_tokens)
        for actual, expected in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9, err_msg=method)
