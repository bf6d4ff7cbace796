"""Which table belongs to which model."""

from collections.abc import Iterator, Mapping

import numpy as np
from flax import nnx

from jaxmodels.convert import glom, hourglass, mammut, scalable_vit, simple_vit
from jaxmodels.convert.table import Entry
from jaxmodels.models.glom import Glom
from jaxmodels.models.hourglass import HourglassTransformer, HourglassTransformerLM
from jaxmodels.models.mammut import MaMMUT
from jaxmodels.models.scalable_vit import ScalableViT
from jaxmodels.models.simple_vit import SimpleViT


def table_of(model: nnx.Module) -> Iterator[Entry]:
    """The table of a model of this package; ValueError for any other."""
    match model:
        case Glom():
            return glom.table(model)
        case HourglassTransformer() | HourglassTransformerLM():
            return hourglass.table(model)
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
