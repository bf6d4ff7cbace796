"""Parity rows of the Hourglass Transformer: a base, then one row per option and mode.

The package never imports `math`, which its padding helper needs; without the next assignment it would raise
NameError for every length that a factor does not divide.
"""

import math
from dataclasses import asdict, replace
from typing import Any

import hourglass_transformer_pytorch
import hourglass_transformer_pytorch.hourglass_transformer_pytorch as published
import numpy as np
from flax import nnx
from hourglass_transformer_pytorch.autoregressive_wrapper import AutoregressiveWrapper

import torch_reference
from jaxmodels.generation import next_token_loss
from jaxmodels.models.hourglass import HourglassTransformer, HourglassTransformerLM
from jaxmodels.models.hourglass_config import HourglassTransformerConfig, HourglassTransformerLMConfig
from parity_tests.cases.case import Case


published.math = math

LM = HourglassTransformerLMConfig(
    num_tokens=11, dim=6, max_seq_len=10, depth=(0, 1, 0), shorten_factor=2, heads=2, dim_head=3
)
BARE = HourglassTransformerConfig(dim=6, depth=(0, 1, 0), heads=2, dim_head=3)
# Row 0 ends early, with whole buckets masked; row 1 has holes inside buckets.
MASK = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 0, 1, 1, 0]], bool)


def row(
    name: str,
    *,
    n: int = 8,
    mask: np.ndarray | None = None,
    pad_value: int | None = None,
    mode: str | None = None,
    **changes: Any,
) -> Case:
    """A language model on `n` tokens; `pad_value` makes it the loss of the wrapped model."""
    config = replace(LM, **changes)

    def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays = {"x": rng.integers(0, config.num_tokens, size=(2, n))}
        return arrays if mask is None else {**arrays, "mask": mask[:, :n].copy()}

    calls: dict[str, Any] = {}
    if pad_value is not None:
        calls = {
            "call_torch": lambda model, x: torch_reference.AutoregressiveWrapper(model, pad_value)(**x),
            "call_published": lambda model, x: AutoregressiveWrapper(model, pad_value)(**x),
            "call_jax": lambda model, x: next_token_loss(model, pad_value=pad_value, **x),
        }
    return Case(
        name=f"hourglass/{name}",
        config=config,
        jax=lambda: HourglassTransformerLM(config, rngs=nnx.Rngs(0)),
        reference=lambda: torch_reference.HourglassTransformerLM(**asdict(config)),
        published=lambda: hourglass_transformer_pytorch.HourglassTransformerLM(**asdict(config)),
        inputs=inputs,
        to_jax=lambda arrays: {{"x": "tokens"}.get(k, k): v for k, v in arrays.items()},
        options=frozenset({mode} if mode else set()),
        **calls,
    )


def bare(
    name: str, *, n: int = 8, mask: np.ndarray | None = None, offset: float = 0.0, **changes: Any
) -> Case:
    """A HourglassTransformer on embeddings."""
    config = replace(BARE, **changes)

    def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays = {"x": offset + rng.normal(size=(2, n, config.dim))}
        return arrays if mask is None else {**arrays, "mask": mask[:, :n].copy()}

    return Case(
        name=f"hourglass/{name}",
        config=config,
        jax=lambda: HourglassTransformer(config, rngs=nnx.Rngs(0)),
        reference=lambda: torch_reference.HourglassTransformer(**asdict(config)),
        published=lambda: hourglass_transformer_pytorch.HourglassTransformer(**asdict(config)),
        inputs=inputs,
        options=frozenset({"embeddings"}),
    )


CASES = [
    row("base", depth=(1, 1, 1)),
    row("num_tokens", num_tokens=5),
    row("dim", dim=5),
    row("max_seq_len", max_seq_len=8),
    row("nested depth", n=9, depth=(1, (0, (0, 1, 1), 0), 0)),
    row("integer depth", depth=2, shorten_factor=None),
    row("integer depth with mask", depth=1, shorten_factor=None, mask=MASK),
    row("empty depth", depth=(0, 0, 0)),
    row("shorten_factor", n=9, depth=(0, (1, 1, 0), 1), shorten_factor=(3, 2)),
    row("shorten_factor of 1", shorten_factor=1),
    row("attn_resampling", attn_resampling=False),
    row("updown_sample_type", n=7, updown_sample_type="linear", shorten_factor=3),
    row("heads", heads=3),
    row("dim_head", dim_head=2),
    row("causal", n=7, depth=(1, 1, 1), causal=False),
    row("mask", n=9, depth=(1, 1, 1), shorten_factor=3, mask=MASK, mode="mask="),
    row("mask without causality", n=8, depth=(1, 1, 1), shorten_factor=3, causal=False, mask=MASK),
    row("mask of nothing", n=8, causal=False, mask=MASK & [[False], [True]]),
    row("loss", n=9, pad_value=0, mode="loss"),
    # Far from zero, but not so far that PyTorch's own rounding (7e-6 of this gradient at 30) fills the tolerance.
    bare("embeddings", offset=10.0),
    bare(
        "embeddings, all options",
        n=7,
        dim=5,
        depth=(1, (0, 1, 0), 1),
        shorten_factor=(2, 3),
        attn_resampling=False,
        updown_sample_type="linear",
        heads=1,
        dim_head=4,
        causal=True,
        norm_out=True,
        mask=MASK,
    ),
]
MODES = {"mask=", "loss", "embeddings"}
