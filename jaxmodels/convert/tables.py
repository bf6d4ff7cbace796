"""Which table belongs to which model."""

from collections.abc import Iterator, Mapping

import numpy as np
from flax import nnx

from jaxmodels.convert import colt5, glom, hourglass, mammut, scalable_vit, simple_vit
from jaxmodels.convert.table import Entry
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig
from jaxmodels.models.glom import Glom, GlomConfig
from jaxmodels.models.hourglass import (
    HourglassTransformer,
    HourglassTransformerConfig,
    HourglassTransformerLM,
    HourglassTransformerLMConfig,
)
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig


# Class name -> (class, configuration), for config.json and the command line.
MODELS: dict[str, tuple[type[nnx.Module], type]] = {
    "Glom": (Glom, GlomConfig),
    "HourglassTransformer": (HourglassTransformer, HourglassTransformerConfig),
    "HourglassTransformerLM": (HourglassTransformerLM, HourglassTransformerLMConfig),
    "ConditionalRoutedViT": (ConditionalRoutedViT, ConditionalRoutedViTConfig),
    "MaMMUT": (MaMMUT, MaMMUTConfig),
    "ScalableViT": (ScalableViT, ScalableViTConfig),
    "SimpleViT": (SimpleViT, SimpleViTConfig),
}


def table_of(model: nnx.Module) -> Iterator[Entry]:
    """The table of a model of this package; ValueError for any other."""
    match model:
        case Glom():
            return glom.table(model)
        case HourglassTransformer() | HourglassTransformerLM():
            return hourglass.table(model)
        case ConditionalRoutedViT():
            return colt5.table(model)
        case MaMMUT():
            return mammut.table(model)
        case ScalableViT():
            return scalable_vit.table(model)
        case SimpleViT():
            return simple_vit.table(model)
        case _:
            raise ValueError(f"model must be one of this package's; got a {type(model).__name__}")


def accept_older_keys(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Renames the keys of older releases of a published package to today's."""
    match model:
        case HourglassTransformer() | HourglassTransformerLM():
            return hourglass.accept_older_keys(arrays)
        case MaMMUT():
            return mammut.accept_older_keys(arrays)
        case ScalableViT():
            return scalable_vit.accept_older_keys(arrays)
        case _:
            return arrays
