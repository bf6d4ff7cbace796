"""Names, shapes, counts and initial values of the weights of the Hourglass Transformer."""

from dataclasses import asdict

import jax
import pytest
import torch
from flax import nnx
from hourglass_transformer_pytorch.autoregressive_wrapper import AutoregressiveWrapper

import jaxmodels as jm
import torch_reference
from jaxmodels.convert.hourglass import infer_config
from parity_tests.cases.hourglass import LM  # the import also repairs the package's missing `math`
from parity_tests.harness import assert_init_matches, assert_layout_matches, assert_round_trip
from parity_tests.hourglass_pairs import (
    H1,
    LAYOUTS,
    SIZES,
    builders,
    golden_pair,
)


@pytest.mark.parametrize("config", LAYOUTS, ids=["nested linear", "integer", "no resampling", "embeddings"])
def test_weights(config) -> None:
    ours, reference, theirs = builders(config)
    assert_layout_matches(reference(), theirs())
    assert_round_trip(ours, theirs())


def test_number_of_parameters() -> None:
    config = jm.HourglassTransformerLMConfig(
        **SIZES | {"dim_head": 3, "updown_sample_type": "linear"},
        depth=(1, (1, 1, 0), 2),
        shorten_factor=(2, 3),
    )
    ours, reference, _ = builders(config)
    assert sum(p.numel() for p in reference().parameters()) == 8083
    assert sum(p.size for p in jax.tree.leaves(nnx.state(nnx.eval_shape(ours)))) == 8083
    assert len(golden_pair(**H1)[0].state_dict()) == 126


def test_wrapped_checkpoint() -> None:
    """A checkpoint of the package's wrapper loads, and its own keys come back without the prefix."""
    ours, reference, _ = builders(LM)
    wrapped = torch_reference.AutoregressiveWrapper(reference())
    AutoregressiveWrapper(reference()).load_state_dict(wrapped.state_dict(), strict=True)
    back = jm.to_state_dict(jm.load_state_dict(nnx.eval_shape(ours), wrapped.state_dict()))
    assert {"net." + key for key in back} == set(wrapped.state_dict())


def test_infer_config() -> None:
    hidden = {"causal", "shorten_factor", "max_seq_len"}
    for config in LAYOUTS:
        arrays = {k: v.numpy() for k, v in builders(config)[1]().state_dict().items()}
        inferred = infer_config(arrays, {"heads": 2})
        for name, value in inferred.items():
            assert value == getattr(config, name), name
        missing = {name for name in asdict(config) if name not in inferred}
        assert missing <= hidden | {"attn_resampling", "updown_sample_type"}
        if getattr(config, "updown_sample_type", "") == "linear":
            assert inferred["shorten_factor"] == (2, 3)
        with pytest.raises(
            ValueError, match=r"heads · dim_head = 6, which is not that of the defaults, 8 · 64"
        ):
            infer_config(arrays, {})
    assert infer_config(arrays, {"dim_head": 3, "causal": True})["heads"] == 2
    assert infer_config(arrays, {"dim_head": 3, "causal": True})["causal"] is True
    default = {
        k: v.numpy() for k, v in torch_reference.HourglassTransformer(4, depth=(1, 0, 0)).state_dict().items()
    }
    inferred = infer_config(default, {})
    assert (inferred["heads"], inferred["dim_head"], inferred["dim"]) == (8, 64, 4)


def test_initialisation_matches() -> None:
    config = jm.HourglassTransformerLMConfig(
        num_tokens=32, dim=24, max_seq_len=20, depth=(1, 1, 0), shorten_factor=2, heads=3, dim_head=10,
        updown_sample_type="linear",
    )  # fmt: skip
    ours, _, theirs = builders(config)
    assert_init_matches(ours, theirs)


@pytest.mark.parametrize("config", LAYOUTS, ids=["nested linear", "integer", "no resampling", "embeddings"])
def test_reference_draws_the_same_initial_weights(config) -> None:
    _, reference, theirs = builders(config)
    torch.manual_seed(5)
    expected = theirs().state_dict()
    torch.manual_seed(5)
    assert all(torch.equal(value, expected[key]) for key, value in reference().state_dict().items())
