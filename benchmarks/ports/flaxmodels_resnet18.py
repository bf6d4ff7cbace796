"""ResNet-18, in evaluation and in training mode: `ResNet18` of flaxmodels against `ResNetForImageClassification`."""

import flaxmodels
import jax
import numpy as np
from transformers import ResNetConfig, ResNetForImageClassification

from benchmarks.ports.common import channels_last, images, randomized
from jaxmodels.compare import Linen, Pair, infer_table


MODES = ("eval", "train")


def pair(mode: str = "eval") -> Pair:
    module = flaxmodels.ResNet18(output="logits", pretrained=None, normalize=False, num_classes=5)
    variables = module.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False)
    config = ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=5
    )
    theirs = randomized(ResNetForImageClassification(config))
    inputs = {"pixel_values": images()}
    calls = {
        "to_ours": channels_last,
        "call_ours": lambda model, inputs: {"logits": model(inputs["pixel_values"])},
    }
    table = infer_table(Linen(module, variables, train=False), theirs, inputs, **calls)
    return Pair(
        name=f"flaxmodels_resnet18, {mode}",
        ours=Linen(module, variables, train=mode == "train"),
        theirs=theirs,
        table=table,
        inputs=inputs,
        outputs=("logits",),
        **calls,
    )
