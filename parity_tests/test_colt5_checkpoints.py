"""Weights of CoLT5: layout, round trip, initialisation, and the configuration that a checkpoint implies."""

from dataclasses import asdict, replace

import pytest
import torch
from flax import nnx

import jaxmodels as jm
import torch_reference
from jaxmodels.convert.colt5 import infer_config
from parity_tests.cases.colt5 import BASE, published
from parity_tests.colt5_pairs import A, B
from parity_tests.harness import assert_init_matches, assert_layout_matches, assert_round_trip


@pytest.mark.parametrize(
    "config",
    [A, B, replace(A, depth=0), replace(A, channels=1, ff_light_mult=0.37)],
    ids=["A", "B", "0", "odd"],
)
def test_weights(config) -> None:
    reference = torch_reference.ConditionalRoutedViT(**asdict(config))
    assert_layout_matches(reference, published(config))
    assert_round_trip(lambda: jm.ConditionalRoutedViT(config, rngs=nnx.Rngs(0)), published(config))


def test_the_same_seed_draws_the_package_s_weights() -> None:
    torch.manual_seed(0)
    expected = published(B).state_dict()
    torch.manual_seed(0)
    actual = torch_reference.ConditionalRoutedViT(**asdict(B)).state_dict()
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())


def test_initialisation_matches() -> None:
    config = replace(BASE, dim=32, attn_num_routed_kv=2, attn_heavy_dim_head=16, ff_light_mult=2)
    assert_init_matches(
        lambda seed: jm.ConditionalRoutedViT(config, rngs=nnx.Rngs(seed)), lambda: published(config)
    )


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (A, {"attn_light_heads": 2, "patch_size": (4, 2)}),
        (replace(B, patch_size=2, ff_light_mult=0.37, ff_heavy_mult=1.3), {"attn_light_dim_head": 5}),
        (replace(A, depth=0), {"patch_size": [4, 2]}),
    ],
)
def test_configuration_from_a_checkpoint(config, given) -> None:
    state_dict = {k: v.numpy() for k, v in published(config).state_dict().items()}
    inferred = infer_config(state_dict, given)
    if config.depth == 0:
        assert inferred == given | {"num_classes": 5, "dim": 8, "channels": 3, "depth": 0}
        return
    twin = jm.ConditionalRoutedViTConfig(**asdict(config) | inferred)
    jm.load_state_dict(jm.ConditionalRoutedViT(twin, rngs=nnx.Rngs(0)), state_dict)
    exact = {"num_classes", "dim", "depth", "channels", "attn_light_heads", "attn_light_dim_head"}
    exact |= {"attn_heavy_heads", "attn_heavy_dim_head", "attn_num_routed_kv", "patch_size"}
    assert {k: getattr(twin, k) for k in exact} == {k: getattr(config, k) for k in exact}


def test_ambiguous_checkpoints() -> None:
    state_dict = {k: v.numpy() for k, v in published(A).state_dict().items()}
    with pytest.raises(ValueError, match=r"attn_light_heads or attn_light_dim_head must be given.* = 10"):
        infer_config(state_dict, {"patch_size": (4, 2)})
    with pytest.raises(ValueError, match=r"patch_size and channels must be given.* = 24, channels=3"):
        infer_config(state_dict, {})
