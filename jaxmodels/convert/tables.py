"""Which table belongs to which model."""

from collections.abc import Iterator, Mapping

import numpy as np
from flax import nnx

from jaxmodels.convert import glom, simple_vit
from jaxmodels.convert.table import Entry
from jaxmodels.models.glom import Glom
from jaxmodels.models.simple_vit import SimpleViT


def table_of(model: nnx.Module) -> Iterator[Entry]:
    """The table of a model of this package; ValueError for any other."""
    match model:
        case Glom():
            return glom.table(model)
        case SimpleViT():
            return simple_vit.table(model)
        case _:
            raise ValueError(f"model must be one of this package's; got a {type(model).__name__}")


def accept_older_keys(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Renames the keys of older releases of a published package to today's."""
    return arrays
