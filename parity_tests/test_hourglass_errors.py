"""Both sides of the Hourglass Transformer refuse the same arguments, with the same words."""

from dataclasses import asdict

import hourglass_transformer_pytorch as package
import hourglass_transformer_pytorch.hourglass_transformer_pytorch as published
import numpy as np
import pytest
import torch

import jaxmodels as jm
import torch_reference
from parity_tests.cases.hourglass import LM  # the import also repairs the package's missing `math`
from parity_tests.hourglass_pairs import (
    H1,
    SIZES,
    builders,
    golden_pair,
    ids,
)


def test_package_without_math_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of the package that parity_tests/cases/hourglass.py mends."""
    model = package.HourglassTransformerLM(**SIZES, **H1)
    monkeypatch.delattr(published, "math")
    with pytest.raises(NameError, match="math"):
        model(torch.from_numpy(ids(2, 11)))


WRONG = [
    {"num_tokens": 0}, {"dim": 0}, {"max_seq_len": 0}, {"heads": 0}, {"dim_head": 0}, {"dim_head": 2.5},
    {"depth": (1, 1)}, {"depth": (1, -1, 1)}, {"depth": True}, {"depth": (1, True, 1)}, {"depth": (1, (1, 1), 1)},
    {"depth": -1, "shorten_factor": None}, {"depth": 1}, {"depth": "111"}, {"shorten_factor": None},
    {"shorten_factor": 0}, {"shorten_factor": -2}, {"shorten_factor": 2.0}, {"shorten_factor": ()},
    {"shorten_factor": (2, 3)}, {"shorten_factor": (0,)}, {"depth": (1, (1, 1, 1), 1), "shorten_factor": (2,)},
    {"updown_sample_type": "mean"}, {"depth": 1, "shorten_factor": None, "updown_sample_type": "mean"},
    {"causal": "no"}, {"attn_resampling": 1},
]  # fmt: skip


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_same_errors(changes) -> None:
    """Both sides refuse the same arguments, with the same words."""
    arguments = asdict(LM) | changes
    with pytest.raises(ValueError, match="must") as in_torch:
        torch_reference.HourglassTransformerLM(**arguments)
    with pytest.raises(ValueError, match="must") as in_jax:
        jm.HourglassTransformerLMConfig(**arguments)
    assert str(in_jax.value) == str(in_torch.value)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (np.zeros((2, 0), int), None, r"must have at least one position"),
        (np.zeros((2, 11), int), None, r"must have at most max_seq_len=10"),
        (np.zeros((2, 4)), None, r"must be integer ids; got .*float64"),
        (np.zeros(4, int), None, r"must have shape \(b, n\)"),
        (
            np.zeros((2, 4), int),
            np.ones((2, 3), bool),
            r"mask must have shape \(2, 4\); got mask\.shape=\(2, 3\)",
        ),
        (np.zeros((2, 4), int), np.ones((2, 4), int), r"mask must be bool"),
    ],
)
def test_same_call_errors(x, mask, message) -> None:
    ours, reference, _ = builders(LM)
    with pytest.raises(ValueError, match=message):
        reference()(torch.from_numpy(x), None if mask is None else torch.from_numpy(mask))
    with pytest.raises(ValueError, match=message):
        ours()(x, mask)


def test_what_the_package_accepts() -> None:
    """The same model with lists, NumPy integers (which the package refuses), and empty factors."""
    same = [
        {"depth": [1, [1, 2, 1], 1], "shorten_factor": [2, 3]},
        {"depth": (np.int64(1), (1, 2, 1), 1), "shorten_factor": (2, np.int64(3))},
    ]
    for spelling in same:
        assert jm.HourglassTransformerLMConfig(**SIZES, **spelling) == jm.HourglassTransformerLMConfig(
            **SIZES, **H1
        )
        torch_reference.HourglassTransformerLM(**SIZES, **spelling).load_state_dict(
            golden_pair(**H1)[0].state_dict()
        )
    for nothing in (None, 0, (), []):
        config = jm.HourglassTransformerLMConfig(**SIZES, depth=1, shorten_factor=nothing)
        assert config.shorten_factor is None
        torch_reference.HourglassTransformerLM(**SIZES, depth=1, shorten_factor=nothing)
    with pytest.raises(ValueError, match=r"depth must be \(pre, valley, post\); got depth=2"):
        jm.HourglassTransformerConfig(dim=4, depth=2, shorten_factor=None)
    with pytest.raises(ValueError, match=r"depth must be \(pre, valley, post\); got depth=2"):
        torch_reference.HourglassTransformer(4, depth=2, shorten_factor=None)
