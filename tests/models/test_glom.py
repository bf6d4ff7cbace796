"""GLOM without PyTorch: errors, gradients, steps, geometry of the consensus."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmodels import Glom, GlomConfig
from tests.properties import check_batch, check_bfloat16, check_gradients, check_jit


CONFIG = GlomConfig(dim=8, levels=3, image_size=12, patch_size=4)


@pytest.fixture(scope="module")
def model() -> Glom:
    return Glom(CONFIG, rngs=nnx.Rngs(0))


def images(b: int = 3, height: int = 12, width: int = 12, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (b, height, width, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, r"dim must be an integer ≥ 1; got dim=0"),
        ({"dim": 8.0}, r"dim must be an integer ≥ 1; got dim=8\.0"),
        ({"dim": True}, r"dim must be an integer ≥ 1; got dim=True"),
        ({"levels": 1}, r"levels must be an integer ≥ 2; got levels=1"),
        ({"patch_size": 0}, r"patch_size must be an integer ≥ 1; got patch_size=0"),
        ({"image_size": 13}, r"image_size must be a multiple of patch_size; got image_size=13, patch_size=4"),
        ({"image_size": (12, 12)}, r"image_size must be an integer ≥ 1; got image_size=\(12, 12\)"),
        ({"local_consensus_radius": -1}, r"local_consensus_radius must be a finite number ≥ 0; got .*=-1"),
        ({"local_consensus_radius": float("nan")}, r"local_consensus_radius must be a finite number ≥ 0"),
        ({"consensus_self": 1}, r"consensus_self must be a bool; got consensus_self=1"),
    ],
)
def test_wrong_configuration(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        GlomConfig(**{"dim": 8, "levels": 3, "image_size": 12, "patch_size": 4} | changes)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"images": jnp.zeros((12, 12, 3))}, r"images must have shape \(b, height, width, 3\)"),
        ({"images": jnp.zeros((1, 3, 12, 12))}, r"images must have shape \(b, height, width, 3\)"),
        ({"images": jnp.zeros((1, 12, 12, 3), jnp.uint8)}, r"images must be floating-point; got .*uint8"),
        ({"images": jnp.zeros((1, 10, 12, 3))}, r"image height must be a multiple of patch_size"),
        (
            {"images": jnp.zeros((1, 16, 12, 3))},
            r"at most \(image_size / patch_size\)² = 9 patches.*4×3 = 12",
        ),
        ({"images": jnp.zeros((1, 12, 12, 3)), "iters": -1}, r"iters must be an integer ≥ 0; got iters=-1"),
        (
            {"images": jnp.zeros((2, 12, 12, 3)), "levels": jnp.zeros((1, 9, 3, 8))},
            r"levels must have shape \(2, 9, 3, 8\); got levels.shape=\(1, 9, 3, 8\)",
        ),
    ],
)
def test_wrong_call(model, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        model(**call)


def test_local_consensus_needs_the_declared_geometry() -> None:
    local = Glom(
        GlomConfig(dim=8, levels=3, image_size=12, patch_size=4, local_consensus_radius=1), rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match=r"image_size=12 square when local_consensus_radius > 0"):
        local(images(1, 4, 36))


def test_jit(model) -> None:
    check_jit(model, images())


def test_batch(model) -> None:
    check_batch(model, images())


def test_gradients(model) -> None:
    check_gradients(model, images())


def test_bfloat16() -> None:
    check_bfloat16(lambda dtype: Glom(CONFIG, dtype=dtype, rngs=nnx.Rngs(0)), images(), distance=0.05)


def casts_in_loops(jaxpr: Any, *, inside: bool = False) -> list[tuple[int, ...]]:
    """The shapes of all arrays that a program casts from float32 to bfloat16 in the bodies of its loops."""
    found = []
    for equation in jaxpr.eqns:
        types = [variable.aval.dtype for variable in (*equation.invars, *equation.outvars)]
        if (
            inside
            and equation.primitive.name == "convert_element_type"
            and types == [jnp.float32, jnp.bfloat16]
        ):
            found.append(equation.outvars[0].aval.shape)
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            body = getattr(part, "jaxpr", part)  # of a closed one
            if hasattr(body, "eqns"):
                found += casts_in_loops(body, inside=inside or equation.primitive.name == "scan")
    return found


def test_weights_are_cast_before_the_loop() -> None:
    model = Glom(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    program = jax.make_jaxpr(jax.grad(lambda model, x: jnp.sum(jnp.sin(model(x)))))(model, images())
    casts = casts_in_loops(program.jaxpr)
    assert (2, 3, 9, 32) in casts  # of GELU, which is computed in float32: casts are seen
    kernels = {(8, 32), (32, 8)}
    assert not [shape for shape in casts if shape[1:] in kernels]


def test_gradients_of_biases_are_summed_in_float32() -> None:
    model = Glom(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)).bottom_up
    program = jax.make_jaxpr(jax.grad(lambda model, x: jnp.sum(jnp.sin(model(x)))))(
        model, jnp.ones((3, 1, 9, 8))
    )
    sums = [e for e in program.jaxpr.eqns if e.primitive.name == "reduce_sum" and e.params["axes"] == (1,)]
    assert len(sums) >= 2
    assert {e.invars[0].aval.dtype for e in sums} == {jnp.dtype(jnp.float32)}


def test_resuming_and_return_all_agree(model) -> None:
    states = model(images(), iters=5, return_all=True)
    assert states.shape == (6, 3, 9, 3, 8)
    np.testing.assert_allclose(states[3], model(images(), iters=3), rtol=0, atol=1e-6)
    resumed = model(images(), iters=3, levels=model(images(), iters=2))
    np.testing.assert_allclose(states[5], resumed, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(states[0], jnp.broadcast_to(model.init_levels[...], states[0].shape))
    np.testing.assert_array_equal(model(images(), iters=0), states[0])


def test_a_level_sees_the_image_after_one_step_per_level(model) -> None:
    difference = model(images(seed=1), return_all=True) - model(images(seed=2), return_all=True)
    for level in range(3):
        assert jnp.all(difference[: level + 1, :, :, level] == 0)
        assert jnp.any(difference[level + 1, :, :, level] != 0)


def test_gradient_is_finite_at_a_zero_state(model) -> None:
    zeros = jnp.zeros((3, 9, 3, 8))
    gradient = jax.grad(lambda levels: jnp.sum(jnp.sin(model(images(), iters=2, levels=levels))))(zeros)
    assert jnp.isfinite(gradient).all()


def test_float64_weights_need_float64(model) -> None:
    from jaxmodels import load_state_dict, to_state_dict

    state_dict = {k: v.astype(np.float64) for k, v in to_state_dict(model).items()}
    with pytest.raises(ValueError, match=r"float64, which JAX would cut to float32(.|\n)*jax_enable_x64"):
        load_state_dict(model, state_dict)
    load_state_dict(model, state_dict, dtype=jnp.float32)


def test_full_size_shapes() -> None:
    model = nnx.eval_shape(lambda: Glom(GlomConfig(), rngs=nnx.Rngs(0)))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model))) == 23_532_544
    out = jax.eval_shape(
        lambda model, x: model(x), model, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    )
    assert out.shape == (2, 256, 6, 512)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(dim=st.integers(1, 6), levels=st.integers(2, 4), side=st.integers(1, 3), patch_size=st.integers(1, 3))
def test_random_configurations_are_finite(dim, levels, side, patch_size) -> None:
    config = GlomConfig(dim=dim, levels=levels, image_size=side * patch_size, patch_size=patch_size)
    size = side * patch_size
    out = nnx.jit(lambda: Glom(config, rngs=nnx.Rngs(0))(images(2, size, size)))()
    assert out.shape == (2, side**2, levels, dim)
    assert np.isfinite(out).all()
