"""GLOM, Hourglass Transformer, CoLT5 ViT, MaMMUT and ScalableViT in JAX/Flax, proven equal to PyTorch."""

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
