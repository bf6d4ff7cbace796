"""Errors of CoLT5: both implementations refuse the same arguments and calls in the same words."""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxmodels as jm
import torch_reference
from parity_tests.cases.colt5 import BASE, published
from parity_tests.colt5_pairs import README, A, channels_last, golden_pair, random_pair


ERRORS = [
    ({"image_size": (30, 12)}, "image_size height must be a multiple of patch_size height"),
    ({"dim": 4}, "dim must be an integer ≥ 8"),
    ({"dim": 10}, "dim must be a multiple of"),
    ({"depth": -1}, "depth must be an integer ≥ 0"),
    ({"attn_num_heavy_tokens_q": 0}, "attn_num_heavy_tokens_q must be an integer ≥ 1"),
    ({"ff_num_heavy_tokens": 2.5}, "ff_num_heavy_tokens must be an integer ≥ 1"),
    ({"attn_light_window_size": 3}, "must be a multiple of attn_light_window_size"),
    ({"attn_num_routed_kv": 3}, "attn_heavy_heads must be a multiple of attn_num_routed_kv"),
    ({"ff_light_mult": 0.1}, r"int\(dim \* ff_light_mult\) must be"),
    ({"default_coor_descent_eps": 0}, "eps must be > 0"),
    (
        {"router_kwargs": {"route_block_size": 2}},
        "router_kwargs must hold nothing but .*got route_block_size",
    ),
    ({"router_kwargs": {"n_iters": 0}}, "n_iters must be an integer ≥ 1"),
    ({"router_kwargs": {"fetch_k_ratio": 0.5}}, "fetch_k_ratio must be ≥ 1"),
    ({"router_kwargs": {"eps_decay": 1.5}}, r"eps_decay must be in \(0, 1\]"),
    ({"router_kwargs": {"eps": "1"}}, "eps must be a number"),
    ({"router_kwargs": {"cosine_sim_routing": 1}}, "cosine_sim_routing must be a bool"),
    ({"tie_break": "first"}, 'tie_break must be "similarity" or "index"'),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_both_sides_refuse_the_same(changes, message) -> None:
    arguments = asdict(BASE) | changes
    for build in (torch_reference.ConditionalRoutedViT, jm.ConditionalRoutedViTConfig):
        with pytest.raises(ValueError, match=message):
            build(**arguments)


def test_what_the_package_does_instead_of_refusing() -> None:
    out = published(BASE, dim=4)(torch.zeros(1, 3, 16, 12))
    assert out.isnan().all()
    with pytest.raises(ValueError, match="router_use_triton must be False"):
        torch_reference.ConditionalRoutedViT(**asdict(BASE), router_use_triton=True)


@pytest.mark.usefixtures("unchecked_types")
def test_both_sides_refuse_the_same_calls() -> None:
    reference, ours = golden_pair(A)
    off = random_pair(README)
    calls = [
        (reference, ours, (1, 1, 16, 12), None, "must have shape"),
        (reference, ours, (1, 3, 18, 12), None, "image height must be a multiple of patch_size height"),
        (reference, ours, (1, 3, 16, 14), None, "image width in patches must be a multiple of"),
        (reference, ours, (1, 3, 16, 12), [None] * 5, "an entry for each of the 6 routers; got 5"),
        (reference, ours, (1, 3, 16, 12), [np.zeros((6, 1, 3), int)] + [None] * 5, r"shape \(6, 1, 2\)"),
        (*off, (1, 3, 16, 8), [np.zeros((2, 1, 16), int), None, None], "indices must be None"),
    ]

    def as_arrays(routing):
        return routing and [None if r is None else jnp.asarray(r) for r in routing]

    for theirs, mine, shape, routing, message in calls:
        x = np.zeros(shape)
        tensors = routing and [None if r is None else torch.from_numpy(r) for r in routing]
        with pytest.raises(ValueError, match=message):
            theirs(torch.from_numpy(x), tensors)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                lambda model, x, routing: model(x, routing), mine, channels_last(x), as_arrays(routing)
            )
