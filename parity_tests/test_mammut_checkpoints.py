"""Weights of MaMMUT: layout, round trip, buffers, initialisation, and the configuration that a checkpoint implies."""

from dataclasses import asdict

import mammut_pytorch
import numpy as np
import pytest
import torch
from flax import nnx

import jaxmodels as jm
import torch_reference
from jaxmodels.convert.mammut import infer_config
from jaxmodels.nn.positions import inverse_frequencies
from parity_tests.cases.mammut import jax_encoder, torch_encoder
from parity_tests.harness import assert_init_matches, assert_layout_matches, assert_round_trip
from parity_tests.mammut_pairs import GOLDEN, IMAGE_TOKENS, TEXT, both, golden_pair, to_jax


@pytest.mark.parametrize("encoder", ["none", "SimpleViT"])
def test_weights(encoder) -> None:
    config = jm.MaMMUTConfig(**GOLDEN | {"image_dim": 8})
    published = mammut_pytorch.MaMMUT(**asdict(config), img_encoder=torch_encoder(encoder, of_package=True))
    reference = torch_reference.MaMMUT(**asdict(config), img_encoder=torch_encoder(encoder, of_package=False))
    assert_layout_matches(reference, published)
    assert_round_trip(
        lambda: jm.MaMMUT(config, img_encoder=jax_encoder(encoder), rngs=nnx.Rngs(0)), published
    )


def test_an_encoder_s_weights_may_come_without_the_extractor() -> None:
    config = jm.MaMMUTConfig(**GOLDEN | {"image_dim": 8})
    reference = torch_reference.MaMMUT(
        **asdict(config), img_encoder=torch_encoder("SimpleViT", of_package=False)
    )
    inside = reference.state_dict()
    bare = {key.replace("img_encoder.vit.", "img_encoder."): value for key, value in inside.items()}
    assert "img_encoder.linear_head.weight" in bare
    ours = jm.load_state_dict(jm.MaMMUT(config, img_encoder=jax_encoder("SimpleViT"), rngs=nnx.Rngs(0)), bare)
    back = jm.to_state_dict(ours)
    assert list(back) == list(inside)
    np.testing.assert_array_equal(
        back["img_encoder.vit.linear_head.weight"], inside["img_encoder.vit.linear_head.weight"]
    )


def test_buffers_are_checked() -> None:
    state_dict = torch_reference.MaMMUT(**GOLDEN).state_dict()
    model = jm.MaMMUT(jm.MaMMUTConfig(**GOLDEN), rngs=nnx.Rngs(0))
    for key, change in {
        "to_logits.0.beta": lambda x: x + 1,
        "layers.1.0.fn.rotary_emb.inv_freq": lambda x: 1.001 * x,
        "to_logits.1.weight": lambda x: x + 1,
    }.items():
        with pytest.raises(ValueError, match=key.replace(".", r"\.")):
            jm.load_state_dict(model, state_dict | {key: change(state_dict[key])})
    rounded_to_bfloat16 = {k: v.bfloat16().float() for k, v in state_dict.items()}
    assert not torch.equal(
        rounded_to_bfloat16["layers.1.0.fn.rotary_emb.inv_freq"],
        state_dict["layers.1.0.fn.rotary_emb.inv_freq"],
    )
    jm.load_state_dict(model, rounded_to_bfloat16)
    for key in ("to_logits.0.beta", "layers.1.0.fn.rotary_emb.inv_freq", "to_logits.1.weight"):
        with pytest.raises(ValueError, match=rf"missing from the state_dict: {key}"):
            jm.load_state_dict(model, {k: v for k, v in state_dict.items() if k != key})


@pytest.mark.parametrize("dim_head", [2, 4, 6, 32, 64, 128])
def test_fresh_frequencies_are_torch_s_to_rounding(dim_head) -> None:
    theirs = torch_reference.positions.RotaryEmbedding(dim_head).inv_freq.numpy()
    published = mammut_pytorch.mammut_pytorch.RotaryEmbedding(dim_head).inv_freq.numpy()
    np.testing.assert_array_equal(theirs, published)
    np.testing.assert_allclose(inverse_frequencies(dim_head), theirs, rtol=3e-7)


def test_stored_frequencies_are_used() -> None:
    """The loaded frequencies are used to the last bit, not those that this machine computes."""
    reference, _ = golden_pair()
    with torch.no_grad():
        for name, buffer in reference.named_buffers():
            if name.endswith("inv_freq"):
                buffer.mul_(1 + 2e-7)
    ours = to_jax(reference, jm.MaMMUTConfig(**GOLDEN))
    text, image_tokens = np.tile(TEXT, (1, 20)), IMAGE_TOKENS
    theirs, mine = both((reference, ours), "__call__", text=text, image_tokens=image_tokens)
    np.testing.assert_allclose(mine[0], theirs[0], rtol=0, atol=1e-11)


def test_initialisation_matches() -> None:
    config = jm.MaMMUTConfig(dim=24, num_tokens=32, depth=2, image_dim=20, num_img_queries=15, dim_head=8, heads=4, cross_attend_every=2)  # fmt: skip
    assert_init_matches(
        lambda seed: jm.MaMMUT(config, rngs=nnx.Rngs(seed)), lambda: mammut_pytorch.MaMMUT(**asdict(config))
    )
    torch.manual_seed(5)
    published = mammut_pytorch.MaMMUT(**asdict(config)).state_dict()
    torch.manual_seed(5)
    reference = torch_reference.MaMMUT(**asdict(config)).state_dict()
    torch.testing.assert_close(dict(reference), dict(published), rtol=0, atol=0)


def test_a_checkpoint_tells_its_configuration() -> None:
    for changes in ({}, {"cross_attend_layers": (1,)}, {"depth": 3, "cross_attend_every": 1}, {"depth": 0}):
        arguments = GOLDEN | changes
        config = jm.MaMMUTConfig(**arguments)
        state_dict = jm.to_state_dict(jm.MaMMUT(config, rngs=nnx.Rngs(0)))
        inferred = jm.MaMMUTConfig(**infer_config(state_dict, {}))
        jm.load_state_dict(jm.MaMMUT(inferred, rngs=nnx.Rngs(1)), state_dict)
        known = {"cross_attend_every": arguments["cross_attend_every"], "pad_id": 3}
        assert infer_config(state_dict, known)["pad_id"] == 3
    assert infer_config(state_dict, {"heads": 1})["heads"] == 1
