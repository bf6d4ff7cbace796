"""GLOM beyond the rows; what it can get wrong, and the test that notices.

| hazard | caught by |
| --- | --- |
| tanh GELU, patch order, self value, unnormalised keys, position path, divisor, zero slab, level order | goldens G1–G5, rows |
| attention untestable at one step | goldens use six; row `levels given` starts from random states |
| `>` against `>=`, Chebyshev, Manhattan | `test_mask_is_euclidean_and_strict`, G3, G4 |
| gradient of the norm at zero | tests/models/test_glom.py |
| positions out of range | tests/models/test_glom.py |
| scan and return_all | `test_resuming_and_return_all_agree` |
"""

from dataclasses import asdict
from typing import Any

import glom_pytorch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmodels as jm
import torch_reference
from jaxmodels.models.glom import non_local_mask
from parity_tests.harness import AS_USERS, assert_init_matches, assert_layout_matches, assert_round_trip


GOLDEN = {"dim": 8, "levels": 3, "image_size": 12, "patch_size": 4}


def wave(shape: tuple[int, ...], k: int = 0) -> np.ndarray:
    i = np.arange(1, np.prod(shape) + 1, dtype=np.int64)
    return np.sin(0.1 * (i * i) + float(k)).reshape(shape)


def golden_pair(**changes) -> tuple[torch.nn.Module, nnx.Module]:
    """The PyTorch and the JAX model with the weights of the recorded numbers, in float64."""
    reference = torch_reference.Glom(**GOLDEN | changes).double()
    with torch.no_grad():
        for k, p in enumerate(reference.parameters()):
            p.copy_(torch.from_numpy(0.3 * wave(tuple(p.shape), k)))
    config = jm.GlomConfig(**GOLDEN | changes)
    ours = nnx.eval_shape(lambda: jm.Glom(config, rngs=nnx.Rngs(0)))
    return reference, jm.load_state_dict(ours, reference.state_dict())


def last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def run(model: nnx.Module, image: np.ndarray, **options: Any) -> np.ndarray:
    return np.asarray(jax.jit(lambda model, image: model(image, **options))(model, last(image)))


IMAGE = wave((2, 3, 12, 12))
GOLDENS = [
    pytest.param(
        {}, IMAGE, {},
        [0.601155487870588, 0.0718568884460289, -0.774586825884889, -0.219757380288717, 0.177574494755879, -0.375926407353306],
        0.13589166815553, 0.0241821577603262, 0.218623508587846, id="G1",
    ),
    pytest.param(
        {}, IMAGE, {"return_all": True},
        [0.0299500249940484, 0.116825502692595, 0.234998072888245, 0.299872080912452, 0.179541643231187, -0.132756132988456],
        0.13589166815553, 0.0269177073395874, 0.208198176280587, id="G1-all",
    ),
    pytest.param(
        {}, IMAGE, {"iters": 1},
        [0.346090976896814, 0.0889632520173465, -0.403160075310459, -0.0254442662328707, 0.177854401619193, -0.315187235209415],
        0.202053572887688, 0.0284699203950414, 0.188591625274423, id="G1-one-step",
    ),
    pytest.param(
        {"consensus_self": True, "local_consensus_radius": 1}, IMAGE, {},
        [0.593538158751023, 0.0775975324206505, -0.820433063087046, -0.261033583704205, 0.197541591689532, -0.386861722313396],
        0.142713238867737, 0.0242910459426335, 0.222995548941546, id="G3",
    ),
    pytest.param(
        {"local_consensus_radius": 1.5}, IMAGE, {},
        [0.569294352257376, 0.0877902519790069, -0.760865474674875, -0.242434409030658, 0.209052195062632, -0.36134912243832],
        0.143847300421431, 0.0243454541233902, 0.218907353690828, id="G4",
    ),
    pytest.param(
        {}, wave((1, 3, 8, 8)), {},
        [0.404797972488329, 0.12596170868157, -0.0180815661221361, 0.0197860022931202, 0.24759401050106, -0.10543383149511],
        0.142815834692783, 0.0262344868004116, 0.220606035973012, id="G5",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "image", "call", "first", "end", "mean", "std"), GOLDENS)
def test_golden(changes, image, call, first, end, mean, std) -> None:
    reference, ours = golden_pair(**changes)
    for out in (
        reference(torch.from_numpy(image), **call).detach().numpy(),
        run(ours, image, **call),
    ):
        np.testing.assert_allclose(out.ravel()[:6], first, rtol=0, atol=1e-13)
        np.testing.assert_allclose(
            [out.ravel()[-1], out.mean(), out.std()], [end, mean, std], rtol=0, atol=1e-13
        )


def test_golden_g2_state_is_carried_to_the_next_frame() -> None:
    reference, ours = golden_pair()
    nxt = wave((2, 3, 12, 12), 1)
    theirs = reference(torch.from_numpy(nxt), iters=3, levels=reference(torch.from_numpy(IMAGE), iters=2))
    actual = run(ours, nxt, iters=3, levels=jnp.asarray(run(ours, IMAGE, iters=2)))
    first = [0.376465294821998, 0.259885053797022, -0.353390670666578, -0.114699926777944]
    for out in (theirs.detach().numpy(), actual):
        np.testing.assert_allclose(out.ravel()[:4], first, rtol=0, atol=1e-13)
        np.testing.assert_allclose(out.std(), 0.208025199828301, rtol=0, atol=1e-13)


def test_golden_g6_denoising_loss_and_gradients() -> None:
    _reference, ours = golden_pair()
    noised = IMAGE + wave((2, 3, 12, 12), 5)
    weight, bias = 0.3 * wave((48, 8)), 0.3 * wave((48,), 1)

    def loss(model):
        top = model(last(noised), return_all=True)[4, :, :, -1]
        image = rearrange(
            top @ weight.T + bias, "b (h w) (p1 p2 c) -> b (h p1) (w p2) c", h=3, w=3, p1=4, p2=4, c=3
        )
        return jnp.mean(jnp.square(image - last(IMAGE)))

    value, gradients = nnx.jit(nnx.value_and_grad(loss))(ours)
    np.testing.assert_allclose(value, 0.5615241980188352, rtol=0, atol=1e-14)
    gradients = jm.to_state_dict(nnx.merge(nnx.graphdef(ours), gradients))
    expected = {
        "init_levels": ([9.694721955711206e-4, -2.5776150010157226e-4], 0.0143108236185998),
        "pos_emb.weight": ([6.645187270757136e-5, 1.0704865873327677e-4], 7.39112746338816e-4),
        "bottom_up.net.1.weight": ([-1.6718014932136356e-5, 2.7227071410774428e-5], 0.0143685104293347),
        "top_down.net.3.bias": ([3.7091808555248505e-4, -1.2914789904924594e-4], 0.00551217552839065),
        "image_to_tokens.1.weight": ([1.0017434925266846e-4, 4.019615905109515e-5], 0.00110261706499939),
    }
    for key, (first, norm) in expected.items():
        np.testing.assert_allclose(gradients[key].ravel()[:2], first, rtol=0, atol=1e-14, err_msg=key)
        np.testing.assert_allclose(np.linalg.norm(gradients[key]), norm, rtol=1e-12, err_msg=key)


@pytest.mark.parametrize("changes", [{}, {"local_consensus_radius": 2}], ids=["global", "local"])
def test_weights(changes) -> None:
    config = jm.GlomConfig(**GOLDEN | changes)
    published = glom_pytorch.Glom(**asdict(config))
    reference = torch_reference.Glom(**asdict(config))
    assert_layout_matches(reference, published)
    assert_round_trip(lambda: jm.Glom(config, rngs=nnx.Rngs(0)), published)


def test_initialisation_matches() -> None:
    config = jm.GlomConfig(dim=32, levels=4, image_size=32, patch_size=4)
    assert_init_matches(
        lambda seed: jm.Glom(config, rngs=nnx.Rngs(seed)), lambda: glom_pytorch.Glom(**asdict(config))
    )


@pytest.mark.parametrize("radius", [0.5, 1, 2**0.5, 2, 5**0.5, 3])
@pytest.mark.parametrize("side", [3, 7])
def test_mask_is_euclidean_and_strict(side, radius) -> None:
    attention = glom_pytorch.glom_pytorch.ConsensusAttention(side, local_consensus_radius=radius)
    np.testing.assert_array_equal(non_local_mask(side, radius), attention.non_local_mask[0].numpy())


def test_wrong_mask_in_a_checkpoint_is_refused() -> None:
    config = jm.GlomConfig(**GOLDEN, local_consensus_radius=1)
    state_dict = torch_reference.Glom(**GOLDEN, local_consensus_radius=2).state_dict()
    with pytest.raises(ValueError, match=r"attention\.non_local_mask: not the values"):
        jm.load_state_dict(jm.Glom(config, rngs=nnx.Rngs(0)), state_dict)


def test_bfloat16_weights_run_where_the_package_fails() -> None:
    """The package divides by a float32 tensor, so its second step mixes float32 states with bfloat16 weights."""
    image = torch.from_numpy(IMAGE).bfloat16()
    published = glom_pytorch.Glom(**GOLDEN).bfloat16()
    with pytest.raises(RuntimeError, match="type"):
        published(image)
    reference = torch_reference.Glom(**GOLDEN).bfloat16()
    reference.load_state_dict(published.state_dict())
    ours = jm.load_state_dict(jm.Glom(jm.GlomConfig(**GOLDEN), rngs=nnx.Rngs(0)), published.state_dict())
    theirs, actual = reference(image), ours(last(IMAGE).astype(jnp.bfloat16))
    assert theirs.dtype == torch.bfloat16
    assert actual.dtype == jnp.bfloat16
    exact = reference.double()(image.double()).detach().numpy()
    assert np.abs(np.asarray(actual, np.float64) - exact).max() < 0.05


def test_full_optimisation_agrees() -> None:
    reference, ours = golden_pair(local_consensus_radius=1.5)
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        actual = np.asarray(jax.jit(compiler_options=AS_USERS)(lambda model, x: model(x))(ours, last(IMAGE)))
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    np.testing.assert_allclose(
        actual, reference(torch.from_numpy(IMAGE)).detach().numpy(), rtol=0, atol=1e-13
    )


@st.composite
def configurations(draw) -> tuple[jm.GlomConfig, tuple[int, int]]:
    patch_size, side = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    radius = draw(st.sampled_from([0, 0, 0.5, 1, 1.5, 2]))
    config = jm.GlomConfig(
        dim=draw(st.integers(1, 9)),
        levels=draw(st.integers(2, 5)),
        image_size=patch_size * side,
        patch_size=patch_size,
        consensus_self=draw(st.booleans()),
        local_consensus_radius=radius,
    )
    grid = (side, side) if radius else (draw(st.integers(1, side)), draw(st.integers(1, side)))
    return config, (grid[0] * patch_size, grid[1] * patch_size)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(configurations(), st.integers(0, 4))
def test_random_configurations(drawn, iters) -> None:
    config, size = drawn
    torch.manual_seed(1)
    reference = torch_reference.Glom(**asdict(config)).double()
    ours = jm.load_state_dict(
        nnx.eval_shape(lambda: jm.Glom(config, rngs=nnx.Rngs(0))), reference.state_dict()
    )
    image = np.random.default_rng(2).normal(size=(2, 3, *size))
    np.testing.assert_allclose(
        run(ours, image, iters=iters),
        reference(torch.from_numpy(image), iters=iters).detach().numpy(),
        rtol=0,
        atol=1e-9,
    )
