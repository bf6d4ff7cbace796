"""ResNet with basic blocks, in both modes: `ResNet18` of jax-resnet against `ResNetForImageClassification`."""

import jax
import numpy as np
from jax_resnet import ResNet18
from transformers import ResNetConfig, ResNetForImageClassification

from benchmarks.ports.common import channels_last, images, randomized
from jaxmodels.compare import Pair, infer_table


MODES = ("eval", "train")
WIDTHS = (64, 16)


def pair(mode: str = "eval") -> Pair:
    module = ResNet18(stage_sizes=[1, 1], hidden_sizes=WIDTHS, n_classes=5)
    variables = module.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    theirs = randomized(
        ResNetForImageClassification(
            ResNetConfig(
                embedding_size=64, hidden_sizes=list(WIDTHS), depths=[1, 1], layer_type="basic", num_labels=5
            )
        )
    )
    inputs = {"pixel_values": images()}
    calls = {
        "to_ours": channels_last,
        "call_ours": lambda model, inputs: {"logits": model(inputs["pixel_values"])},
    }
    table = infer_table((module, variables), theirs, inputs, **calls)
    return Pair(
        name=f"jax_resnet_resnet18, {mode}",
        ours=(module, variables),
        theirs=theirs,
        table=table,
        inputs=inputs,
        outputs=("logits",),
        **calls,
    )
