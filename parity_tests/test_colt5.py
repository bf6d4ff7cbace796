"""The conditionally routed ViT beyond the rows: quirks, routing, precision. This table spans all of its test files.

| hazard | caught by |
| --- | --- |
| patch layout, window order, oblong grid, table order, head layout of to_kv, route-major heads | goldens A and B |
| masks, K = n | goldens of the descent |
| ε of the last exponential | `test_descent_is_the_package_s` with three steps, row `schedule` |
| which of several equal scores is selected | golden C, rows `saturated`, `test_any_choice_of_the_package_can_be_replayed` |
| epsilon and place of the norm's floor, its gradient at zero | `test_norm_near_zero` |
| relu's slope at zero | `test_gradient_where_nothing_is_cut_off` |
| LayerNorm's epsilon | `test_flat_image` |
| tanh GELU, null pair scaled by the scores, router on normalised tokens | goldens; row `straight_through` |
| table in float32 | `test_table_follows_the_parameters` |
| selection from another sample | `test_routes_stay_with_their_sample` |
| equal keys with either sign of zero | `test_equal_similarities_select_the_first` |
| gradients of parameters that take no part | rows `routers off`, `all queries, all feed-forward` |
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
from jaxmodels.models.colt5 import RMSNorm
from parity_tests.cases.colt5 import published, selecting, topk_by
from parity_tests.colt5_pairs import (
    A_LOGITS,
    README,
    A,
    B,
    channels_last,
    chosen_by,
    forward,
    golden_pair,
    gradients,
    image,
    package,
    random_pair,
    sorted_indices,
    twin,
)
from parity_tests.harness import AS_USERS
from torch_reference import colt5 as reference_module


@pytest.mark.parametrize("scale", [1, 1e-3, 1e-13, 0])
def test_norm_near_zero(scale) -> None:
    """The floor of 1e-12 is on the norm; a zero vector has value 0 and slope √d·γ/1e-12."""
    x, weights = (np.random.default_rng(seed).normal(size=(3, 4)) for seed in (0, 1))
    theirs, ours = (
        reference_module.RMSNorm(4).double(),
        RMSNorm(4, dtype=None, param_dtype=float, rngs=nnx.Rngs(0)),
    )
    t = torch.from_numpy(scale * x).requires_grad_()
    out = theirs(t)
    (out * torch.from_numpy(weights)).sum().backward()
    mine, back = jax.vjp(ours, jnp.asarray(scale * x))
    np.testing.assert_allclose(mine, out.detach().numpy(), rtol=1e-13, atol=1e-300)
    gradient = t.grad.numpy()
    np.testing.assert_allclose(
        back(jnp.asarray(weights))[0], gradient, rtol=0, atol=1e-12 * np.abs(gradient).max()
    )


def test_flat_image() -> None:
    """A patch of one colour has no variance: LayerNorm divides by the root of its epsilon."""
    reference, ours = random_pair(A)
    x = np.full((1, 3, 16, 12), 0.3) + 1e-3 * image(1)
    theirs = reference(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(forward(ours, channels_last(x)), theirs, rtol=0, atol=1e-11)


def test_table_follows_the_parameters() -> None:
    """The package computes it in PyTorch's default type, so a float64 model loses 9 digits under float32."""
    reference, ours = golden_pair(A)
    model = package(reference, A)
    x = torch.from_numpy(image(2))
    torch.set_default_dtype(torch.float64)
    exact = model(x).detach().numpy()
    torch.set_default_dtype(torch.float32)
    assert 1e-10 < np.abs(model(x).detach().numpy() - exact).max() < 1e-8
    np.testing.assert_allclose(reference(x).detach().numpy(), exact, rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.asarray(forward(ours, channels_last(image(2)))), exact, rtol=0, atol=1e-14)


def test_selecting_every_query_works_where_the_package_fails() -> None:
    """The configuration of the package's README: as many heavy queries as a window has tokens."""
    reference, ours = random_pair(README)
    model, x = package(reference, README), image(2, 16, 8)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        model(torch.from_numpy(x))
    with selecting(model, topk_by("similarity")):
        expected = model(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(reference(torch.from_numpy(x)).detach().numpy(), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.asarray(forward(ours, channels_last(x))), expected, rtol=0, atol=1e-13)
    for _, _, parameters in gradients(reference, ours, x):
        for unused in ("null_q_token", "q_router.routing_token", "kv_router.routing_token"):
            assert not parameters[f"transformer.layers.0.0.{unused}"].any()


def test_routes_stay_with_their_sample() -> None:
    """With several routes the package gathers the context of one sample from others; ours never does."""
    config = replace(A, attn_num_routed_kv=2)
    reference, ours = random_pair(config)
    model, x = package(reference, config), image(3)

    def leak(call) -> float:
        together = np.asarray(call(x))
        alone = np.concatenate([np.asarray(call(x[i : i + 1])) for i in range(3)])
        return float(np.abs(together - alone).max())

    assert leak(lambda x: model(torch.from_numpy(x)).detach()) > 1e-3
    assert leak(lambda x: reference(torch.from_numpy(x)).detach()) < 1e-14
    assert leak(lambda x: forward(ours, channels_last(x))) < 1e-14


def test_any_choice_of_the_package_can_be_replayed() -> None:
    """Saturated scores, `torch.topk` as it is: with its indices given, both sides repeat the package."""
    config = replace(
        A, dim=64, image_size=(32, 32), patch_size=4, attn_light_window_size=4, attn_num_heavy_tokens_q=4
    )
    reference, ours = random_pair(config, sharpness=4)
    model, x = package(reference, config), np.random.default_rng(0).normal(size=(2, 3, 32, 32))
    chosen: list[torch.Tensor] = []

    def native(scores, _similarity, k, _call):
        chosen.append(torch.topk(scores, k).indices)
        return chosen[-1]

    with selecting(model, native):
        expected = model(torch.from_numpy(x)).detach().numpy()
    routing = [indices[:, None] for indices in chosen]
    theirs = reference(torch.from_numpy(x), routing).detach().numpy()
    mine = np.asarray(forward(ours, channels_last(x), [jnp.asarray(indices.numpy()) for indices in routing]))
    np.testing.assert_allclose(theirs, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-13)
    own = sorted_indices(reference.routing(torch.from_numpy(x)))
    assert own == sorted_indices(chosen_by(ours, channels_last(x)))
    assert own != [np.sort(r.numpy(), axis=-1).tolist() for r in routing], "no tie: nothing was shown"


@pytest.mark.parametrize("flash", [True, False])
def test_kernel_switch_changes_no_number(flash) -> None:
    reference, ours = golden_pair(A)
    other = torch_reference.ConditionalRoutedViT(**asdict(A), flash_attn=flash).double()
    other.load_state_dict(reference.state_dict())
    np.testing.assert_allclose(
        other(torch.from_numpy(image(2))).detach().numpy(), A_LOGITS, rtol=0, atol=1e-12
    )
    model = published(A, flash_attn=flash).double()
    model.load_state_dict(reference.state_dict())
    torch.set_default_dtype(torch.float64)
    try:
        theirs = model(torch.from_numpy(image(2))).detach().numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(np.asarray(forward(ours, channels_last(image(2)))), theirs, rtol=0, atol=1e-14)


def test_bfloat16_weights() -> None:
    reference, _ = golden_pair(A)
    exact = reference(torch.from_numpy(image(2))).detach().numpy()
    reference = reference.bfloat16()
    ours = twin(reference, A)
    theirs, mine = (
        reference(torch.from_numpy(image(2)).bfloat16()),
        forward(ours, channels_last(image(2)).astype(jnp.bfloat16)),
    )
    assert (theirs.dtype, mine.dtype) == (torch.bfloat16, jnp.bfloat16)
    for out in (theirs.detach().float().numpy(), np.asarray(mine, np.float32)):
        assert np.abs(out - exact).max() < 0.02


def test_full_optimisation_agrees() -> None:
    reference, ours = golden_pair(B)
    x = image(3, 16, 8)
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        theirs, mine = gradients(reference, ours, x)
        actual = np.asarray(
            jax.jit(compiler_options=AS_USERS)(lambda model, x: model(x))(ours, channels_last(x))
        )
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    np.testing.assert_allclose(actual, reference(torch.from_numpy(x)).detach().numpy(), rtol=0, atol=1e-13)
    scale = max(np.abs(g).max() for g in theirs[2].values())
    for key, gradient in theirs[2].items():
        np.testing.assert_allclose(mine[2][key], gradient, rtol=0, atol=1e-12 * scale, err_msg=key)


@st.composite
def configurations(draw) -> tuple[jm.ConditionalRoutedViTConfig, tuple[int, int]]:
    patch = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    window, routes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    grid = tuple(window * draw(st.integers(1, 2)) for _ in range(2))
    size = (grid[0] * patch[0], grid[1] * patch[1])
    config = jm.ConditionalRoutedViTConfig(
        image_size=size,
        patch_size=patch,
        num_classes=draw(st.integers(1, 4)),
        dim=4 * draw(st.integers(2, 5)),
        depth=draw(st.integers(0, 2)),
        attn_num_heavy_tokens_q=draw(st.integers(1, 9)),
        attn_num_heavy_tokens_kv=draw(st.integers(1, 9)),
        attn_heavy_dim_head=draw(st.integers(1, 4)),
        attn_heavy_heads=routes * draw(st.integers(1, 2)),
        attn_light_dim_head=draw(st.integers(1, 4)),
        attn_light_heads=draw(st.integers(1, 3)),
        attn_light_window_size=window,
        ff_num_heavy_tokens=draw(st.integers(1, 12)),
        ff_heavy_mult=draw(st.floats(0.3, 2)),
        ff_light_mult=draw(st.floats(0.3, 2)),
        channels=draw(st.integers(1, 4)),
        router_straight_through=draw(st.booleans()),
        router_kwargs=draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "eps": st.floats(0.1, 2),
                    "cosine_sim_routing": st.booleans(),
                    "n_iters": st.integers(1, 20),
                },
            )
        ),
        attn_num_routed_kv=routes,
        tie_break=draw(st.sampled_from(["similarity", "index"])),
    )
    return config, size


@settings(max_examples=8, deadline=None, derandomize=True)
@given(configurations())
def test_random_configurations(drawn) -> None:
    config, size = drawn
    reference, ours = random_pair(config, seed=1)
    x = np.random.default_rng(2).normal(size=(2, config.channels, *size))
    expected = reference(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(np.asarray(forward(ours, channels_last(x))), expected, rtol=0, atol=1e-9)
    model = package(reference, config)
    with selecting(model, topk_by(config.tie_break)):
        actual = model(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(expected, actual, rtol=0, atol=1e-11)
