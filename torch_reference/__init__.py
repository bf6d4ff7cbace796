"""The five published PyTorch architectures, rewritten to be read; their checkpoints load here unchanged."""

from torch_reference.colt5 import ConditionalRoutedViT as ConditionalRoutedViT
from torch_reference.generation import AutoregressiveWrapper as AutoregressiveWrapper
from torch_reference.glom import Glom as Glom
from torch_reference.hourglass import HourglassTransformer as HourglassTransformer
from torch_reference.hourglass import HourglassTransformerLM as HourglassTransformerLM
from torch_reference.mammut import MaMMUT as MaMMUT
from torch_reference.scalable_vit import ScalableViT as ScalableViT
from torch_reference.simple_vit import SimpleViT as SimpleViT
