"""The five published PyTorch architectures, rewritten to be read; their checkpoints load here unchanged."""

from torch_reference.glom import Glom as Glom
from torch_reference.simple_vit import SimpleViT as SimpleViT
