"""Which conversion belongs to which model."""

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jaxmodels.convert import colt5, glom, hourglass, mammut, scalable_vit, simple_vit
from jaxmodels.convert.table import Entry
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig
from jaxmodels.models.glom import Glom, GlomConfig
from jaxmodels.models.hourglass import HourglassTransformer, HourglassTransformerLM
from jaxmodels.models.hourglass_config import HourglassTransformerConfig, HourglassTransformerLMConfig
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig


class Conversion(NamedTuple):
    """A class, its configuration, and the module with its table."""

    model: type[Any]
    config: type[Any]
    module: ModuleType


CONVERSIONS = {
    "Glom": Conversion(Glom, GlomConfig, glom),
    "HourglassTransformer": Conversion(HourglassTransformer, HourglassTransformerConfig, hourglass),
    "HourglassTransformerLM": Conversion(HourglassTransformerLM, HourglassTransformerLMConfig, hourglass),
    "ConditionalRoutedViT": Conversion(ConditionalRoutedViT, ConditionalRoutedViTConfig, colt5),
    "MaMMUT": Conversion(MaMMUT, MaMMUTConfig, mammut),
    "ScalableViT": Conversion(ScalableViT, ScalableViTConfig, scalable_vit),
    "SimpleViT": Conversion(SimpleViT, SimpleViTConfig, simple_vit),
}


def conversion_of(name: str) -> Conversion:
    """The conversion of the class called `name`; ValueError where there is none."""
    if name not in CONVERSIONS:
        raise ValueError(f"model must be one of {', '.join(CONVERSIONS)}; got {name!r}")
    return CONVERSIONS[name]


def table_of(model: nnx.Module) -> Iterator[Entry]:
    """The table of a model of this package; ValueError for any other."""
    kind = type(model)
    conversion = CONVERSIONS.get(kind.__name__)
    if conversion is None or not issubclass(kind, conversion.model):  # the PyTorch twins have the same names
        known = ", ".join(CONVERSIONS)
        raise ValueError(f"model must be one of jaxmodels' {known}; got a {kind.__module__}.{kind.__name__}")
    return conversion.module.table(model)


def accept_older_keys(name: str, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Renames the keys of older releases and of wrappers of a published package to those of today."""
    module = conversion_of(name).module
    return module.accept_older_keys(arrays) if hasattr(module, "accept_older_keys") else arrays


def infer_config(name: str, arrays: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments that the shapes of a checkpoint tell; `given` ones win."""
    return conversion_of(name).module.infer_config(arrays, given)
