"""SimpleViT beyond the rows; what it can get wrong, and the test that notices.

| hazard | caught by |
| --- | --- |
| patch order, heads, table (column first), GELU, epsilon | rows (float64), random configurations |
| table in float32 inside a float64 model | `test_position_table_follows_the_weights` |
| table added after the choice of patches | row `patch_dropout`: the kept patches are scattered |
| number of kept patches | `test_number_of_kept_patches`, row `patch_dropout` |
| one-pass variance | row `off-centre input` in float32 |
| choice with replacement, the same for all images | tests/models/test_simple_vit.py |
"""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmodels as jm
import torch_reference
from jaxmodels.convert.simple_vit import infer_config
from parity_tests.cases.simple_vit import BASE, default_dtype, published_tokens
from parity_tests.cases.vit_pytorch import published
from parity_tests.harness import AS_USERS, assert_init_matches, assert_layout_matches, assert_round_trip
from torch_reference.simple_vit import TokenExtractor


def package(config: jm.SimpleViTConfig) -> torch.nn.Module:
    return published("simple_vit_with_patch_dropout").SimpleViT(**asdict(config))


def twin_of(reference: torch.nn.Module, config: jm.SimpleViTConfig) -> jm.SimpleViT:
    ours = nnx.eval_shape(lambda: jm.SimpleViT(config, rngs=nnx.Rngs(0)))
    return jm.load_state_dict(ours, reference.state_dict())


def last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("depth", [0, 2])
def test_weights(depth) -> None:
    config = replace(BASE, depth=depth)
    assert_layout_matches(torch_reference.SimpleViT(**asdict(config)), package(config))
    assert_round_trip(lambda: jm.SimpleViT(config, rngs=nnx.Rngs(0)), package(config))


def test_the_same_seed_gives_the_package_and_the_reference_the_same_model() -> None:
    torch.manual_seed(0)
    theirs = package(BASE)
    torch.manual_seed(0)
    clean = torch_reference.SimpleViT(**asdict(BASE))
    for (key, expected), actual in zip(theirs.state_dict().items(), clean.state_dict().values(), strict=True):
        assert torch.equal(actual, expected), key
    image = torch.from_numpy(noise(2, 3, 16, 16)).float()
    outputs = []
    for model in (theirs, clean):  # in training mode, with the default patch dropout of one half
        torch.manual_seed(1)
        outputs.append(model.train()(image))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-6)


def test_initialisation_matches() -> None:
    config = replace(BASE, dim=32, mlp_dim=48, dim_head=8, num_classes=20)
    assert_init_matches(
        lambda seed: jm.SimpleViT(config, rngs=nnx.Rngs(seed)), lambda: package(config), seeds=6
    )


def test_image_tokens_of_mammut() -> None:
    """`TokenExtractor` replaces the package's `Extractor`: same keys, same tokens, and gradients reach the encoder."""
    theirs = published("extractor").Extractor(package(BASE).eval(), return_embeddings_only=True, detach=False)
    clean = TokenExtractor(torch_reference.SimpleViT(**asdict(BASE)).eval())
    assert list(clean.state_dict()) == list(theirs.state_dict())
    assert all(key.startswith("vit.") for key in clean.state_dict())
    clean.load_state_dict(theirs.state_dict())
    image = torch.from_numpy(noise(2, 3, 8, 8)).float()
    tokens = clean(image)
    torch.testing.assert_close(tokens, theirs(image), rtol=0, atol=1e-6)
    tokens.sum().backward()
    assert clean.vit.to_patch_embedding[2].weight.grad.abs().max() > 0
    assert clean.vit.linear_head.weight.grad is None
    # The package's Extractor can also read the reference.
    torch.testing.assert_close(published_tokens(clean.vit, image), tokens, rtol=0, atol=0)


def test_position_table_follows_the_weights() -> None:
    """The package's float64 model has a float32 position table unless PyTorch's default dtype is float64."""
    theirs, clean = package(BASE).double().eval(), torch_reference.SimpleViT(**asdict(BASE)).double().eval()
    theirs.load_state_dict(clean.state_dict())
    image = torch.from_numpy(noise(2, 3, 16, 32))
    with torch.no_grad():
        exact = clean(image)
        assert 1e-10 < (theirs(image) - exact).abs().max() < 1e-6
        with default_dtype(torch.float64):
            torch.testing.assert_close(theirs(image), exact, rtol=0, atol=1e-12)
    ours = twin_of(clean, BASE)
    np.testing.assert_allclose(np.asarray(ours(last(image.numpy()))), exact.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rate", [0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_number_of_kept_patches(n, rate) -> None:
    config = replace(BASE, patch_dropout=rate, depth=0)
    image = noise(1, 3, 4, 4 * n).astype(np.float32)
    expected = published_tokens(package(config).train(), torch.from_numpy(image)).shape
    clean = torch_reference.SimpleViT(**asdict(config)).train()
    assert clean.tokens(torch.from_numpy(image)).shape == expected
    ours = nnx.view(jm.SimpleViT(config, rngs=nnx.Rngs(0)), deterministic=False)
    assert ours.tokens(last(image), rngs=nnx.Rngs(dropout=0)).shape == expected


def test_configuration_is_read_off_a_checkpoint() -> None:
    config = replace(BASE, depth=3, patch_size=(4, 2), channels=1)
    arrays = jm.to_state_dict(jm.SimpleViT(config, rngs=nnx.Rngs(0)))
    told = {"image_size": config.image_size, "patch_size": config.patch_size}
    assert jm.SimpleViTConfig(**infer_config(arrays, told | {"heads": 2})) == config
    assert jm.SimpleViTConfig(**infer_config(arrays, told | {"dim_head": 3})) == config
    with pytest.raises(ValueError, match=r"heads · dim_head = 6, which is not a multiple of dim_head=64"):
        infer_config(arrays, told)
    with pytest.raises(ValueError, match=r"patch_size and channels must be given .* = 8, channels=3"):
        infer_config(arrays, {"heads": 2})
    square = jm.to_state_dict(jm.SimpleViT(BASE, rngs=nnx.Rngs(0)))
    assert jm.SimpleViTConfig(**infer_config(square, {"image_size": 8, "heads": 2})) == BASE


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 10},
        {"image_size": (8, 10)},
        {"image_size": (8, 8, 8)},
        {"patch_size": 0},
        {"patch_size": "4"},
        {"num_classes": 0},
        {"dim": 4},
        {"dim": 10},
        {"depth": -1},
        {"heads": 0},
        {"mlp_dim": 1.5},
        {"channels": 0},
        {"dim_head": 0},
        {"patch_dropout": 1.0},
        {"patch_dropout": -0.1},
        {"patch_dropout": None},
    ],
    ids=repr,
)
def test_both_refuse_the_same_arguments_in_the_same_words(changes) -> None:
    with pytest.raises(ValueError, match="must be") as theirs:
        torch_reference.SimpleViT(**asdict(BASE) | changes)
    with pytest.raises(ValueError, match="must be") as ours:
        replace(BASE, **changes)
    assert str(ours.value) == str(theirs.value)


def test_both_refuse_the_same_images_in_the_same_words() -> None:
    clean = torch_reference.SimpleViT(**asdict(BASE))
    ours = jm.SimpleViT(BASE, rngs=nnx.Rngs(0))
    for height, width in ((6, 8), (8, 10), (0, 8)):
        with pytest.raises(ValueError, match="must be") as theirs:
            clean(torch.zeros(1, 3, height, width))
        with pytest.raises(ValueError, match="must be") as actual:
            ours(jnp.zeros((1, height, width, 3)))
        assert str(actual.value) == str(theirs.value)


def test_the_package_breaks_at_dim_4_where_ours_refuse() -> None:
    config = asdict(BASE) | {"dim": 4}
    broken = published("simple_vit_with_patch_dropout").SimpleViT(**config).eval()
    assert torch.isnan(broken(torch.zeros(1, 3, 8, 8))).all()
    with pytest.raises(ValueError, match=r"dim must be an integer ≥ 8; got dim=4"):
        torch_reference.SimpleViT(**config)


def test_full_optimisation_agrees() -> None:
    reference = torch_reference.SimpleViT(**asdict(replace(BASE, depth=2))).double().eval()
    ours = twin_of(reference, replace(BASE, depth=2))
    image = noise(2, 3, 16, 12)
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        actual = np.asarray(
            jax.jit(compiler_options=AS_USERS)(lambda model, images: model(images))(ours, last(image))
        )
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    expected = reference(torch.from_numpy(image)).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)


@st.composite
def configurations(draw) -> tuple[jm.SimpleViTConfig, tuple[int, int]]:
    patch = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    config = jm.SimpleViTConfig(
        image_size=patch,
        patch_size=patch if draw(st.booleans()) else list(patch),
        num_classes=draw(st.integers(1, 3)),
        dim=4 * draw(st.integers(2, 4)),
        depth=draw(st.integers(0, 2)),
        heads=draw(st.integers(1, 3)),
        mlp_dim=draw(st.integers(1, 9)),
        channels=draw(st.integers(1, 4)),
        dim_head=draw(st.integers(1, 5)),
    )
    return config, (patch[0] * draw(st.integers(1, 4)), patch[1] * draw(st.integers(1, 4)))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(configurations())
def test_random_configurations(drawn) -> None:
    config, size = drawn
    torch.manual_seed(1)
    reference = torch_reference.SimpleViT(**asdict(config)).double().eval()
    image = noise(2, config.channels, *size)
    actual = jax.jit(lambda model, images: (model(images), model.tokens(images)))(
        twin_of(reference, config), last(image)
    )
    expected = reference(torch.from_numpy(image)), reference.tokens(torch.from_numpy(image))
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.detach().numpy(), rtol=0, atol=1e-9)
