"""The words of a benchmark: modes, precisions, implementations, devices; and AdamW's settings in all of them."""

from typing import Literal, get_args


Mode = Literal["forward", "train"]
Precision = Literal["float32", "bfloat16"]
Implementation = Literal["eager", "compile", "torchax", "jax"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)  # eager first, JAX last
Device = Literal["cpu", "cuda"]

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = (
    1e-4,
    (0.9, 0.999),
    1e-8,
    1e-2,
)  # of AdamW in every implementation
