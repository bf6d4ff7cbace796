"""GLOM, Hourglass Transformer, CoLT5 ViT, MaMMUT and ScalableViT in JAX/Flax, proven equal to PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from jaxmodels import data as data
    from jaxmodels.convert import from_pretrained as from_pretrained
    from jaxmodels.convert import load_decoder as load_decoder
    from jaxmodels.convert import load_preprocessing as load_preprocessing
    from jaxmodels.convert import load_state_dict as load_state_dict
    from jaxmodels.convert import save_pretrained as save_pretrained
    from jaxmodels.convert import to_state_dict as to_state_dict
    from jaxmodels.models.colt5 import ConditionalRoutedViT as ConditionalRoutedViT
    from jaxmodels.models.colt5 import ConditionalRoutedViTConfig as ConditionalRoutedViTConfig
    from jaxmodels.models.glom import Glom as Glom
    from jaxmodels.models.glom import GlomConfig as GlomConfig
    from jaxmodels.models.hourglass import HourglassTransformer as HourglassTransformer
    from jaxmodels.models.hourglass import HourglassTransformerLM as HourglassTransformerLM
    from jaxmodels.models.hourglass_config import HourglassTransformerConfig as HourglassTransformerConfig
    from jaxmodels.models.hourglass_config import HourglassTransformerLMConfig as HourglassTransformerLMConfig
    from jaxmodels.models.mammut import MaMMUT as MaMMUT
    from jaxmodels.models.mammut import MaMMUTConfig as MaMMUTConfig
    from jaxmodels.models.mammut import MaMMUTLoss as MaMMUTLoss
    from jaxmodels.models.scalable_vit import ScalableViT as ScalableViT
    from jaxmodels.models.scalable_vit import ScalableViTConfig as ScalableViTConfig
    from jaxmodels.models.simple_vit import SimpleViT as SimpleViT
    from jaxmodels.models.simple_vit import SimpleViTConfig as SimpleViTConfig

# Where each public name lives. It is imported when it is first used: JAX takes seconds to import, and the command
# line has something to say before that.
_MODULES = {
    "from_pretrained": "jaxmodels.convert",
    "load_decoder": "jaxmodels.convert",
    "load_preprocessing": "jaxmodels.convert",
    "load_state_dict": "jaxmodels.convert",
    "save_pretrained": "jaxmodels.convert",
    "to_state_dict": "jaxmodels.convert",
    "ConditionalRoutedViT": "jaxmodels.models.colt5",
    "ConditionalRoutedViTConfig": "jaxmodels.models.colt5",
    "Glom": "jaxmodels.models.glom",
    "GlomConfig": "jaxmodels.models.glom",
    "HourglassTransformer": "jaxmodels.models.hourglass",
    "HourglassTransformerConfig": "jaxmodels.models.hourglass_config",
    "HourglassTransformerLM": "jaxmodels.models.hourglass",
    "HourglassTransformerLMConfig": "jaxmodels.models.hourglass_config",
    "MaMMUT": "jaxmodels.models.mammut",
    "MaMMUTConfig": "jaxmodels.models.mammut",
    "MaMMUTLoss": "jaxmodels.models.mammut",
    "ScalableViT": "jaxmodels.models.scalable_vit",
    "ScalableViTConfig": "jaxmodels.models.scalable_vit",
    "SimpleViT": "jaxmodels.models.simple_vit",
    "SimpleViTConfig": "jaxmodels.models.simple_vit",
}


_SUBPACKAGES = ("convert", "data", "models", "nn")


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"jaxmodels.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_SUBPACKAGES})
