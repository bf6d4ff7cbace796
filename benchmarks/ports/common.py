"""What the pair files share: random weights, token ids, and Hugging Face's Linen modules as JAX sides."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from jaxmodels.compare import Linen, Pair, infer_table, table_from_names


VOCABULARY = 61
SHAPE = (2, 10)  # of token ids


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every weight and running statistic moved away from 0 and 1, which would hide mistakes."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=draw))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw))
    return model.eval()


def token_ids(seed: int = 0) -> np.ndarray:
    """Random ids, none of which is the padding's 0."""
    return np.random.default_rng(seed).integers(1, VOCABULARY, SHAPE)


def padding_mask() -> np.ndarray:
    """1 where a token counts; the last three of the second sequence do not."""
    mask = np.ones(SHAPE, np.int64)
    mask[1, -3:] = 0
    return mask


def positions() -> np.ndarray:
    """The places of the tokens, which Flax's modules take as an argument."""
    return np.broadcast_to(np.arange(SHAPE[1]), SHAPE)


def images(size: int = 32, channels: int = 3) -> np.ndarray:
    """Random images, channels first."""
    return np.random.default_rng(0).normal(size=(2, channels, size, size))


def channels_last(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Images as Flax's modules take them."""
    return {name: value.transpose(0, 2, 3, 1) for name, value in inputs.items()}


def transformers_pair(
    name: str,
    flax_model: Any,
    theirs: torch.nn.Module,
    inputs: Mapping[str, Any],
    call_ours: Callable[..., Any],
    *,
    train: bool = False,
    named: bool = False,
    **options: Any,
) -> Pair:
    """A Flax class of Hugging Face against its PyTorch class.

    Args:
      name: what the report calls the pair.
      flax_model: with random weights; its Linen module is compared.
      theirs: the PyTorch model.
      inputs, call_ours, options: as `Pair` takes them.
      train: whether layers with running statistics use those of the batch.
      named: whether the table comes from the names. By default it is inferred, which needs a port that computes the
        same, and no weights that one side alone has.
    """
    params = flax_model.params
    variables = params if "batch_stats" in params else {"params": params}
    ours = Linen(flax_model.module, variables)
    theirs = randomized(theirs)
    if named:
        table = table_from_names(ours, theirs)
    else:
        calls = {key: options[key] for key in ("to_ours", "call_theirs") if key in options}
        table = infer_table(ours, theirs, inputs, call_ours=call_ours, **calls)  # in evaluation mode
    ours = Linen(flax_model.module, variables, deterministic=not train)
    return Pair(
        name=name, ours=ours, theirs=theirs, table=table, inputs=inputs, call_ours=call_ours, **options
    )
