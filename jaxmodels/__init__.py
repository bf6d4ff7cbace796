"""GLOM, Hourglass Transformer, CoLT5 ViT, MaMMUT and ScalableViT in JAX/Flax, proven equal to PyTorch."""

from jaxmodels.convert import load_state_dict as load_state_dict
from jaxmodels.convert import to_state_dict as to_state_dict
from jaxmodels.models.glom import Glom as Glom
from jaxmodels.models.glom import GlomConfig as GlomConfig
from jaxmodels.models.simple_vit import SimpleViT as SimpleViT
from jaxmodels.models.simple_vit import SimpleViTConfig as SimpleViTConfig
