"""SimpleViT without PyTorch: errors, gradients, positions, patch dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmodels import SimpleViT, SimpleViTConfig
from jaxmodels.models.simple_vit import PatchDropout
from tests.properties import check_batch, check_bfloat16, check_gradients, check_gradients_at_zero, check_jit


TINY = {
    "image_size": 8,
    "patch_size": 4,
    "num_classes": 3,
    "dim": 8,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 12,
    "dim_head": 3,
}
CONFIG = SimpleViTConfig(**TINY)
compiled = jax.jit(lambda model, images: model(images))


@pytest.fixture(scope="module")
def model() -> SimpleViT:
    return SimpleViT(CONFIG, rngs=nnx.Rngs(0))


def images(b: int = 3, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (b, height, width, channels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": 10},
            r"image_size \(height\) must be a multiple of patch_size \(height\); got .*=10, patch_size \(height\)=4",
        ),
        (
            {"image_size": (8, 10)},
            r"image_size \(width\) must be a multiple of patch_size \(width\); got .*=10",
        ),
        (
            {"image_size": (8, 8, 8)},
            r"image_size must be an integer ≥ 1 or a pair \(height, width\) of them; got image_size=\(8, 8, 8\)",
        ),
        ({"patch_size": 0}, r"patch_size must be an integer ≥ 1 or a pair .*; got patch_size=0"),
        (
            {"patch_size": (4, 2.0)},
            r"patch_size must be an integer ≥ 1 or a pair .*; got patch_size=\(4, 2\.0\)",
        ),
        ({"num_classes": 0}, r"num_classes must be an integer ≥ 1; got num_classes=0"),
        ({"dim": 4}, r"dim must be an integer ≥ 8; got dim=4"),
        ({"dim": 10}, r"dim must be a multiple of 4, for the position table; got dim=10"),
        ({"depth": -1}, r"depth must be an integer ≥ 0; got depth=-1"),
        ({"heads": True}, r"heads must be an integer ≥ 1; got heads=True"),
        ({"mlp_dim": 0}, r"mlp_dim must be an integer ≥ 1; got mlp_dim=0"),
        ({"channels": 0}, r"channels must be an integer ≥ 1; got channels=0"),
        ({"dim_head": 0}, r"dim_head must be an integer ≥ 1; got dim_head=0"),
        ({"patch_dropout": 1}, r"patch_dropout must be a number in \[0, 1\); got patch_dropout=1"),
        (
            {"patch_dropout": float("nan")},
            r"patch_dropout must be a number in \[0, 1\); got patch_dropout=nan",
        ),
    ],
)
def test_wrong_configuration(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        SimpleViTConfig(**TINY | changes)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            jnp.zeros((8, 8, 3)),
            r"images must have shape \(b, height, width, 3\); got images.shape=\(8, 8, 3\)",
        ),
        (jnp.zeros((1, 3, 8, 8)), r"images must have shape \(b, height, width, 3\)"),
        (jnp.zeros((1, 8, 8, 3), jnp.uint8), r"images must be floating-point; got images.dtype=uint8"),
        (
            jnp.zeros((1, 8, 6, 3)),
            r"image width must be a multiple of patch width; got image width=6, patch width=4",
        ),
        (jnp.zeros((1, 0, 8, 3)), r"image height must be an integer ≥ 1"),
    ],
)
def test_wrong_images(model, image, message) -> None:
    with pytest.raises(ValueError, match=message):
        model(image)
    with pytest.raises(ValueError, match=message):
        model.tokens(image)


def test_lists_become_tuples() -> None:
    lists = SimpleViTConfig(**TINY | {"image_size": [8, 12], "patch_size": [4, 2]})
    assert lists == SimpleViTConfig(**TINY | {"image_size": (8, 12), "patch_size": (4, 2)})
    assert isinstance(hash(lists), int)


def test_jit(model) -> None:
    check_jit(model, images())


def test_batch(model) -> None:
    check_batch(model, images(), call=compiled)


def test_gradients(model) -> None:
    check_gradients(model, images())


def test_gradients_are_finite_for_a_blank_image(model) -> None:
    check_gradients_at_zero(model, jnp.zeros((1, 8, 8, 3)))


def test_bfloat16() -> None:
    check_bfloat16(
        lambda dtype: SimpleViT(CONFIG, dtype=dtype, rngs=nnx.Rngs(0)),
        images(),
        call=compiled,
        distance=0.1,
    )


def test_tokens_and_other_image_sizes(model) -> None:
    image = images(2, 12, 20)
    tokens, logits = jax.jit(lambda model, x: (model.tokens(x), model(x)))(model, image)
    assert tokens.shape == (2, 15, 8)
    np.testing.assert_allclose(logits, model.linear_head(tokens.mean(axis=1)), rtol=0, atol=1e-6)


def test_positions_tell_patches_apart(model) -> None:
    image = images(1)
    shifted = jnp.roll(image, 4, axis=2)  # exchanges the two columns of patches
    assert jnp.abs(compiled(model, image) - compiled(model, shifted)).max() > 1e-4


def test_patch_dropout_only_on_request(model) -> None:
    calm = compiled(model, images())
    active = nnx.view(model, deterministic=False)
    run = jax.jit(lambda model, x, key: model.tokens(x, rngs=nnx.Rngs(dropout=key)))
    first, again, other = (run(active, images(), jax.random.key(seed)) for seed in (0, 0, 3))
    assert first.shape == (3, 2, 8)
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 0.01
    np.testing.assert_array_equal(compiled(model, images()), calm)  # the view left the model as it was
    assert run(model, images(), jax.random.key(0)).shape == (3, 4, 8)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("rngs", [None, jax.random.key(0)], ids=["none", "a bare key"])
def test_patch_dropout_needs_rngs(model, rngs) -> None:
    active = nnx.view(model, deterministic=False)
    with pytest.raises(ValueError, match=r"rngs must be an nnx\.Rngs .*; pass rngs=nnx\.Rngs\(dropout=key\)"):
        active.tokens(images(), rngs=rngs)
    without_dropout = SimpleViT(SimpleViTConfig(**TINY | {"patch_dropout": 0.0}), rngs=nnx.Rngs(0))
    assert nnx.view(without_dropout, deterministic=False).tokens(images()).shape == (3, 4, 8)


def test_patches_are_chosen_per_image_uniformly_and_once() -> None:
    dropout = nnx.view(PatchDropout(0.7), deterministic=False)
    tokens = jnp.broadcast_to(jnp.arange(10.0)[:, None], (4000, 10, 1))
    kept = np.asarray(dropout(tokens, rngs=nnx.Rngs(dropout=0)))[..., 0]
    assert kept.shape == (4000, 3)
    assert all(len(set(row)) == 3 for row in kept.tolist())
    share = np.bincount(kept.astype(int).ravel(), minlength=10) / 4000
    np.testing.assert_allclose(share, 0.3, atol=0.04)


def test_full_size_shapes() -> None:
    config = SimpleViTConfig(
        image_size=256, patch_size=32, num_classes=1000, dim=1024, depth=6, heads=16, mlp_dim=2048
    )
    model = nnx.eval_shape(lambda: SimpleViT(config, rngs=nnx.Rngs(0)))
    image = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    logits, tokens = jax.eval_shape(lambda model, x: (model(x), model.tokens(x)), model, image)
    assert (logits.shape, tokens.shape) == ((2, 1000), (2, 64, 1024))


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    patch=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 3),
    depth=st.integers(0, 1),
)
def test_random_configurations_are_finite(patch, grid, channels, depth) -> None:
    config = SimpleViTConfig(
        **TINY | {"image_size": patch, "patch_size": patch, "channels": channels, "depth": depth}
    )
    image = images(2, patch[0] * grid[0], patch[1] * grid[1], channels)
    out = compiled(SimpleViT(config, rngs=nnx.Rngs(0)), image)
    assert out.shape == (2, 3)
    assert jnp.isfinite(out).all()
