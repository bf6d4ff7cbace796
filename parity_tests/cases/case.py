"""A parity row: one configuration in one mode, built three times."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx
from torch import nn


Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the parity matrix.

    Attributes:
      name: `model/row`; the row is named after the option or mode that it varies.
      config: the dataclass that builds all three.
      jax: builds the JAX model; its weights are replaced afterwards.
      reference: builds the model of `torch_reference`.
      published: builds the published package's model; None where the package cannot run this row.
      published_missing: why `published` is None.
      inputs: draws the inputs in PyTorch's layout (float64 and integers).
      to_jax: turns them into the layout of `jaxmodels` (channels last).
      call_torch, call_jax, call_published: run the mode; return an array or a tuple of arrays. Without
        `call_published` the published model is called like the reference.
      spread: standard deviation of the noise that is added to every parameter.
      options: options and modes beyond the config's fields that this row varies.
    """

    name: str
    config: Any
    jax: Callable[[], nnx.Module]
    reference: Callable[[], nn.Module]
    published: Callable[[], nn.Module] | None
    published_missing: str = ""
    inputs: Callable[[np.random.Generator], Arrays]
    to_jax: Callable[[Arrays], Arrays] = field(default=lambda arrays: arrays)
    call_torch: Callable[[Any, Mapping[str, Any]], Any] = field(default=lambda model, x: model(**x))
    call_jax: Callable[[Any, Mapping[str, Any]], Any] = field(default=lambda model, x: model(**x))
    call_published: Callable[[Any, Mapping[str, Any]], Any] | None = None
    spread: float = 0.1
    options: frozenset[str] = frozenset()


def channels_last(*names: str) -> Callable[[Arrays], Arrays]:
    """Turns the named images from (b, c, h, w) into (b, h, w, c) and leaves the rest alone."""

    def convert(arrays: Arrays) -> Arrays:
        return {k: v.transpose(0, 2, 3, 1) if k in names else v for k, v in arrays.items()}

    return convert


@contextmanager
def training_mode(model: nn.Module) -> Generator[None]:
    """A PyTorch model with its dropout switched on."""
    model.train()
    try:
        yield
    finally:
        model.eval()
