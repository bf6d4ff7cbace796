"""One file per architecture; none imports another."""

from typing import Literal, get_args


# What the command line, the comparison and the benchmarks call the five models.
ModelName = Literal["glom", "hourglass", "colt5", "mammut", "scalable_vit"]
MODEL_NAMES: tuple[ModelName, ...] = get_args(ModelName)
