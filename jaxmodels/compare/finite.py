"""NaN and infinity in inputs and weights: refused by name before anything runs, since all that follows has them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxmodels.compare.calls import PairError
from jaxmodels.convert.torch_io import to_numpy


def require_finite_inputs(inputs: Mapping[str, Any], argument: str) -> None:
    """Checks arrays that both models are to get.

    An input of which no value is above 0 may hold negative infinity: such an input is an additive mask.

    Args:
      inputs: arrays by name, in the compared type.
      argument: what they belong to, such as "inputs" or "batches(3)".

    Raises:
      PairError: an array holds NaN or infinity.
    """
    for name, array in inputs.items():
        found = _first_bad(array, may_mask=True)
        if found:
            raise PairError(
                f"{argument}[{name!r}] holds {found}: both models would return NaN, which shows nothing. Give "
                "finite values; -inf is accepted in an additive mask, of which no value is above 0"
            )


def require_finite_weights(theirs: torch.nn.Module, ours: nnx.Module) -> None:
    """Checks the weights and the state of both models, after JAX has got PyTorch's.

    Buffers and state may hold infinity, as masks do; parameters may not.

    Raises:
      PairError: a weight holds NaN or infinity; the sentence names it and its side.
    """
    learned = dict(theirs.named_parameters())
    for name, tensor in [*learned.items(), *theirs.named_buffers()]:
        _require_weight("PyTorch", name, to_numpy(tensor), learned=name in learned)
    for path, variable in nnx.to_flat_state(nnx.state(ours)):
        name = ".".join(map(str, path))
        _require_weight("JAX", name, variable.get_value(), learned=isinstance(variable, nnx.Param))


def _require_weight(side: str, name: str, value: Any, *, learned: bool) -> None:
    found = _first_bad(value, infinity=learned)
    if found:
        raise PairError(
            f"the weight {name} of the {side} model holds {found}: give it finite values, such as those of a "
            "checkpoint from before the training diverged"
        )


def _first_bad(value: Any, *, infinity: bool = True, may_mask: bool = False) -> str | None:
    """The first NaN or, where `infinity` counts, infinity: what it is and where; None where there is none."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):  # also random keys
        return None
    array = np.asarray(value)
    if dtype == jnp.bfloat16:
        array = array.astype(np.float32)
    bad = ~np.isfinite(array) if infinity else np.isnan(array)
    if may_mask and not np.iscomplexobj(array) and not (array > 0).any():
        bad &= ~np.isneginf(array)
    if not bad.any():
        return None
    place = [int(i) for i in np.argwhere(bad)[0]]
    more = f", and {bad.sum() - 1} more" if bad.sum() > 1 else ""
    return f"{array[tuple(place)]} at {place}{more}"
