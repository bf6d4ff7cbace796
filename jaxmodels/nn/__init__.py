"""Layers that at least two models share, and Flax layers with PyTorch's defaults."""

from jaxmodels.nn.activations import gelu as gelu
from jaxmodels.nn.attention import AttentionModule as AttentionModule
from jaxmodels.nn.attention import Implementation as Implementation
from jaxmodels.nn.attention import attend as attend
from jaxmodels.nn.buffer import Buffer as Buffer
from jaxmodels.nn.coordinate_descent import coordinate_descent as coordinate_descent
from jaxmodels.nn.dropout import Dropout as Dropout
from jaxmodels.nn.dtypes import at_least_float32 as at_least_float32
from jaxmodels.nn.dtypes import promote as promote
from jaxmodels.nn.model import Model as Model
from jaxmodels.nn.normalize import l2_normalize as l2_normalize
from jaxmodels.nn.options import LayerOptions as LayerOptions
from jaxmodels.nn.positions import RotaryEmbedding as RotaryEmbedding
from jaxmodels.nn.positions import rotate as rotate
from jaxmodels.nn.positions import sincos_2d as sincos_2d
from jaxmodels.nn.remat import RematModule as RematModule
from jaxmodels.nn.remat import rematerialized as rematerialized
from jaxmodels.nn.torch_like import Conv as Conv
from jaxmodels.nn.torch_like import Embed as Embed
from jaxmodels.nn.torch_like import LayerNorm as LayerNorm
from jaxmodels.nn.torch_like import Linear as Linear
from jaxmodels.nn.torch_like import by_rows as by_rows
from jaxmodels.nn.torch_like import uniform_fan_in as uniform_fan_in
