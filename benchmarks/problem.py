"""What a measuring process reads: plain Python and NumPy, so that it can load JAX or PyTorch alone."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np


if TYPE_CHECKING:  # a process that measures PyTorch must not load JAX
    from jaxmodels.models import ModelName


Size = Literal["small", "medium", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A workload that a process without JAX can read.

    Attributes:
      model: name of the model.
      arguments: arguments of the PyTorch twin's constructor.
      encoder: arguments of the constructor of MaMMUT's image encoder.
      iters: GLOM's steps in the forward pass; None is twice the number of levels.
      inputs: one batch, from `benchmarks.sizes.inputs`.
    """

    model: "ModelName"
    arguments: dict[str, Any]
    encoder: dict[str, Any] | None
    iters: int | None
    inputs: dict[str, np.ndarray]

    def write(self, path: Path) -> None:
        path.write_bytes(pickle.dumps(self.__dict__))

    @classmethod
    def read(cls, path: Path) -> "Problem":
        return cls(**pickle.loads(path.read_bytes()))
