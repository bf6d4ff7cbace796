"""Pairs whose sides need two environments: a Hugging Face checkpoint with random weights is what they share."""

from pathlib import Path
from typing import Any

import numpy as np


FOLDER = Path("out/ports")
VOCABULARY = 61
IDS = np.random.default_rng(0).integers(1, VOCABULARY, (2, 10))
MASK = np.ones((2, 10), np.int64)


def checkpoint(name: str) -> Path:
    """The folder of a pair's checkpoint, which PyTorch's side writes and JAX's side loads."""
    return FOLDER / name / "checkpoint"


def saved(model: Any, name: str) -> Any:
    """The PyTorch model with random weights, written as a checkpoint; in evaluation mode."""
    from benchmarks.ports.common import randomized  # here: the other side may lack PyTorch

    randomized(model)
    model.save_pretrained(checkpoint(name))
    return model
