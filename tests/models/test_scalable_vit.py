"""ScalableViT without PyTorch: errors, gradients, features, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmodels import ScalableViT, ScalableViTConfig
from jaxmodels.models.scalable_vit import PEG, PatchLinear
from jaxmodels.nn import Conv
from tests.properties import check_batch, check_bfloat16, check_gradients, check_gradients_at_zero, check_jit


TINY = {
    "num_classes": 3,
    "dim": 8,
    "depth": (1, 1),
    "heads": 2,
    "reduction_factor": (2, 1),
    "window_size": (2, None),
    "iwsa_dim_key": 3,
    "iwsa_dim_value": 4,
    "ssa_dim_key": 5,
    "ssa_dim_value": 6,
    "ff_expansion_factor": 2,
}
CONFIG = ScalableViTConfig(**TINY)
compiled = jax.jit(lambda model, images: model(images))


@pytest.fixture(scope="module")
def model() -> ScalableViT:
    return ScalableViT(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def dropping() -> ScalableViT:
    config = ScalableViTConfig(**TINY, dropout=0.5)
    return ScalableViT(config, rngs=nnx.Rngs(0))


def images(b: int = 3, height: int = 16, width: int = 16, channels: int = 3, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (b, height, width, channels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 2}, r"depth must be a tuple with the number of blocks of each stage; got depth=2"),
        ({"depth": ()}, r"depth must be a tuple with the number of blocks of each stage; got depth=\(\)"),
        ({"depth": (1, -1)}, r"depth must be an integer ≥ 0; got depth=-1"),
        ({"heads": 0}, r"heads must be an integer ≥ 1; got heads=0"),
        (
            {"heads": (1, 2, 3)},
            r"heads must be one value or a tuple with one for each of the 2 stages in depth; got heads=\(1, 2, 3\)",
        ),
        ({"reduction_factor": 0}, r"reduction_factor must be an integer ≥ 1; got reduction_factor=0"),
        ({"reduction_factor": None}, r"reduction_factor must be an integer ≥ 1; got reduction_factor=None"),
        ({"window_size": 0}, r"window_size must be an integer ≥ 1; got window_size=0"),
        ({"window_size": ((2, 2), 1)}, r"window_size must be an integer ≥ 1; got window_size=\(2, 2\)"),
        ({"ssa_dim_value": 0}, r"ssa_dim_value must be an integer ≥ 1; got ssa_dim_value=0"),
        (
            {"ff_expansion_factor": 1.5},
            r"ff_expansion_factor must be an integer ≥ 1; got ff_expansion_factor=1\.5",
        ),
        ({"dropout": 1}, r"dropout must be a number in \[0, 1\); got dropout=1"),
        ({"dropout": float("nan")}, r"dropout must be a number in \[0, 1\); got dropout=nan"),
        ({"num_classes": 0}, r"num_classes must be an integer ≥ 1; got num_classes=0"),
        ({"channels": True}, r"channels must be an integer ≥ 1; got channels=True"),
        ({"dim": 0}, r"dim must be an integer ≥ 1; got dim=0"),
    ],
)
def test_wrong_configuration(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        ScalableViTConfig(**TINY | changes)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            jnp.zeros((16, 16, 3)),
            r"images must have shape \(b, height, width, 3\); got images.shape=\(16, 16, 3\)",
        ),
        (jnp.zeros((1, 3, 16, 16)), r"images must have shape \(b, height, width, 3\)"),
        (jnp.zeros((1, 16, 16, 3), jnp.uint8), r"images must be floating-point; got images.dtype=uint8"),
        (jnp.zeros((1, 0, 16, 3)), r"image height must be an integer ≥ 1"),
        (
            jnp.zeros((1, 16, 20, 3)),
            r"the map of stage 0 must be a multiple of window_size=2 in width; got 5, from an image width of 20",
        ),
        (
            jnp.zeros((1, 4, 16, 3)),
            r"the map of stage 0 must be at least reduction_factor=2 in height; got 1, from an image height of 4",
        ),
    ],
)
def test_wrong_images(model, image, message) -> None:
    with pytest.raises(ValueError, match=message):
        model(image)


def test_lists_become_tuples() -> None:
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in TINY.items()}
    assert ScalableViTConfig(**lists) == CONFIG
    assert hash(ScalableViTConfig(**lists)) == hash(CONFIG)


def test_jit(model) -> None:
    check_jit(model, images())


def test_batch(model) -> None:
    check_batch(model, images(), call=compiled)


def test_gradients(model) -> None:
    check_gradients(model, images())


def test_gradients_are_finite_for_a_blank_image(model) -> None:
    check_gradients_at_zero(model, jnp.zeros((1, 16, 16, 3)))


def test_bfloat16() -> None:
    check_bfloat16(
        lambda dtype: ScalableViT(CONFIG, dtype=dtype, rngs=nnx.Rngs(0)),
        images(),
        call=compiled,
        distance=0.15,
    )


@pytest.mark.parametrize("size", [(1, 1), (13, 30)])
def test_features(size) -> None:
    config = ScalableViTConfig(**TINY | {"reduction_factor": 1, "window_size": None, "depth": (1, 0)})
    model = ScalableViT(config, rngs=nnx.Rngs(0))
    logits, features = jax.jit(lambda model, x: (model(x), model.features(x)))(model, images(2, *size))
    for stage, feature in enumerate(features):
        unit = 4 * 2**stage
        assert feature.shape == (2, -(-size[0] // unit), -(-size[1] // unit), 8 * 2**stage)
    expected = model.head(model.head_norm(features[-1].mean(axis=(1, 2))))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)


def test_dropout_only_on_request(model, dropping) -> None:
    calm = compiled(model, images())
    np.testing.assert_array_equal(compiled(dropping, images()), calm)
    active = nnx.view(dropping, deterministic=False)
    run = jax.jit(lambda model, x, key: model(x, rngs=nnx.Rngs(dropout=key)))
    first, again, other = (run(active, images(), jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 0.01
    np.testing.assert_array_equal(compiled(dropping, images()), calm)  # the view left the model as it was
    quiet = nnx.view(model, deterministic=False)  # a rate of zero needs no random numbers
    np.testing.assert_array_equal(compiled(quiet, images()), calm)


def test_dropout_keeps_the_mean(dropping) -> None:
    layer = nnx.view(dropping, deterministic=False).stages[0].blocks[0].ff1.dropout
    out = layer(jnp.ones((200, 200)), rngs=nnx.Rngs(dropout=0))
    assert set(np.unique(out).tolist()) == {0.0, 2.0}
    assert abs(out.mean() - 1) < 0.03


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("rngs", [None, jax.random.key(0)], ids=["none", "a bare key"])
def test_dropout_needs_rngs(dropping, rngs) -> None:
    active = nnx.view(dropping, deterministic=False)
    with pytest.raises(ValueError, match=r"rngs must be an nnx\.Rngs .*; pass rngs=nnx\.Rngs\(dropout=key\)"):
        active(images(), rngs=rngs)


@pytest.mark.parametrize("size", [(1, 1), (4, 5)])
def test_peg_is_a_depthwise_convolution_with_a_residual(size) -> None:
    peg = PEG(6, dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    conv = Conv(6, 6, kernel_size=3, padding=1, groups=6, rngs=nnx.Rngs(0))
    conv.kernel.set_value(peg.kernel[...][:, :, None])
    conv.bias.set_value(peg.bias[...])
    x = images(2, *size, channels=6)
    np.testing.assert_allclose(peg(x), conv(x) + x, rtol=0, atol=1e-6)


def test_patch_linear_is_a_strided_convolution() -> None:
    layer = PatchLinear(5, 7, size=3, dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    conv = Conv(5, 7, kernel_size=3, stride=3, use_bias=False, rngs=nnx.Rngs(0))
    conv.kernel.set_value(layer.kernel[...])
    x = images(2, 8, 10, channels=5)
    np.testing.assert_allclose(layer(x), conv(x), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(layer(x), layer(x.at[:, 6:].set(9.0).at[:, :, 9:].set(9.0)))


def test_readme_size() -> None:
    config = ScalableViTConfig(
        num_classes=1000,
        dim=64,
        heads=(2, 4, 8, 16),
        depth=(2, 2, 20, 2),
        ssa_dim_key=(40, 40, 40, 32),
        reduction_factor=(8, 4, 2, 1),
        window_size=(64, 32, None, None),
        dropout=0.1,
    )
    model = nnx.eval_shape(lambda: ScalableViT(config, rngs=nnx.Rngs(0)))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model))) == 75_917_544
    image = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    logits, features = jax.eval_shape(lambda model, x: (model(x), model.features(x)), model, image)
    assert logits.shape == (2, 1000)
    assert [f.shape for f in features] == [(2, 64 // 2**s, 64 // 2**s, 64 * 2**s) for s in range(4)]
    with pytest.raises(ValueError, match=r"stage 0 must be a multiple of window_size=64 in height; got 56"):
        jax.eval_shape(lambda model, x: model(x), model, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32))


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    dim=st.integers(1, 5),
    depth=st.lists(st.integers(0, 1), min_size=1, max_size=2),
    heads=st.integers(1, 3),
    width=st.integers(1, 20),
)
def test_random_configurations_are_finite(dim, depth, heads, width) -> None:
    changes = {"dim": dim, "depth": depth, "heads": heads, "reduction_factor": 1, "window_size": None}
    out = compiled(ScalableViT(ScalableViTConfig(**TINY | changes), rngs=nnx.Rngs(0)), images(2, 9, width))
    assert out.shape == (2, 3)
    assert jnp.isfinite(out).all()
