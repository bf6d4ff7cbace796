"""What the measuring processes are given: plain Python and NumPy, so that each can hold one library alone."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np


ModelName = Literal["glom", "hourglass", "colt5", "mammut", "scalable_vit"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)
Size = Literal["small", "medium", "gpu"]
Mode = Literal["forward", "train"]
Precision = Literal["float32", "bfloat16"]
Implementation = Literal["eager", "compile", "torchax", "jax"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)  # eager first, JAX last
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One workload as PyTorch is told it.

    Attributes:
      model: whose twin.
      arguments: of its constructor.
      encoder: of the constructor of MaMMUT's image encoder.
      iters: GLOM's steps in the forward pass; None is twice the number of levels.
      inputs: one batch for both sides; images are (b, height, width, 3) float32.
    """

    model: ModelName
    arguments: dict[str, Any]
    encoder: dict[str, Any] | None
    iters: int | None
    inputs: dict[str, np.ndarray]

    def write(self, path: Path) -> None:
        path.write_bytes(pickle.dumps(self.__dict__))

    @classmethod
    def read(cls, path: Path) -> "Problem":
        return cls(**pickle.loads(path.read_bytes()))
