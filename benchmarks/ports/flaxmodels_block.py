"""A block of ResNet-18, in both modes: `BasicBlock` of flaxmodels against `ResNetBasicLayer`.

The whole model has fixed widths of up to 512, so that one block stands for it.
"""

import jax
import numpy as np
from flaxmodels.resnet.resnet import BasicBlock
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer

from benchmarks.ports.common import channels_last, images, randomized
from jaxmodels.compare import Linen, Pair, table_from_names


MODES = ("eval", "train")
WIDTH = 8


def pair(mode: str = "eval") -> Pair:
    module = BasicBlock(features=WIDTH, block_name="block")
    variables = module.init(jax.random.key(0), np.zeros((1, 8, 8, WIDTH), np.float32), {}, train=False)
    ours = Linen(module, variables, train=mode == "train")
    theirs = randomized(ResNetBasicLayer(WIDTH, WIDTH))
    names = {}
    for i in range(2):
        names[f"Conv_{i}"] = f"layer.{i}.convolution"
        names[f"BatchNorm_{i}"] = f"layer.{i}.normalization"
    return Pair(
        name=f"flaxmodels_block, {mode}",
        ours=ours,
        theirs=theirs,
        table=table_from_names(ours, theirs, names),
        inputs={"hidden_state": images(8, WIDTH)},
        to_ours=channels_last,
        call_ours=lambda model, inputs: model(
            inputs["hidden_state"], {}
        ),  # it stores activations in the dict
        output_axes="b c h w -> b h w c",
    )
