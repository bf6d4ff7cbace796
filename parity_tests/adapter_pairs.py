"""Pairs whose JAX side is of another library than nnx, for the tests of the adapters."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from jaxmodels.compare import Pair, Result, compare, table_from_names
from parity_tests.toy_pairs import normal


KEY = jax.random.key(0)
IMAGES = normal(2, 4, 6, 6)
TOKENS = np.arange(10).reshape(2, 5) % 7
FEATURES = normal(2, 5, 8)


def channels_last(inputs: Any) -> Any:
    return {name: np.moveaxis(value, 1, -1) for name, value in inputs.items()}


def vmapped(model: Any, inputs: Any) -> Any:
    return jax.vmap(model)(*inputs.values())


def settled(model: nn.Module) -> nn.Module:
    """Weights and statistics away from their initial values."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():
                noise = torch.randn_like(value)
                value.add_(noise.abs() if name.endswith("running_var") else 0.3 * noise)
    return model


def judged(ours: Any, theirs: nn.Module, *arrays: Any, **options: Any) -> Result:
    """The verdict on a pair whose modules have the same names."""
    names, mode = options.pop("names", None), options.pop("mode", "eval")
    pair = Pair(
        name="port",
        ours=ours,
        theirs=settled(theirs),
        table=table_from_names(ours, theirs, names),
        inputs=dict(zip("xyz", arrays, strict=False)),
        **options,
    )
    return compare(pair, steps=0, mode=mode)


def place(result: Result) -> str:
    return "" if result.divergence is None else result.divergence.layer


def line_of(result: Result) -> str:
    """The line of the code that the verdict names."""
    assert result.code is not None
    return Path(result.code.file).read_text().splitlines()[result.code.line - 1].strip()
