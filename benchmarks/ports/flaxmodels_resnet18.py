"""ResNet-18, in both modes: `ResNet18` of flaxmodels against `ResNetForImageClassification`."""

import flaxmodels
import jax
import numpy as np
from transformers import ResNetConfig, ResNetForImageClassification

from benchmarks.ports.common import channels_last, images, randomized
from jaxmodels.compare import Linen, Pair, table_from_names


MODES = ("eval", "train")
STAGES, BLOCKS = 4, 2


def pair(mode: str = "eval") -> Pair:
    module = flaxmodels.ResNet18(output="logits", pretrained=None, normalize=False, num_classes=5)
    variables = module.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False)
    config = ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[BLOCKS] * STAGES, layer_type="basic", num_labels=5
    )
    ours = Linen(module, variables, train=mode == "train")
    theirs = randomized(ResNetForImageClassification(config))
    return Pair(
        name=f"flaxmodels_resnet18, {mode}",
        ours=ours,
        theirs=theirs,
        table=table_from_names(ours, theirs, names()),  # infer_table takes minutes for this size
        inputs={"pixel_values": images()},
        to_ours=channels_last,
        call_ours=lambda model, inputs: {"logits": model(inputs["pixel_values"])},
        outputs=("logits",),
    )


def names() -> dict[str, str]:
    """The modules of flaxmodels, and what they are called in PyTorch."""
    stem = "resnet.embedder.embedder"
    found = {
        "Conv_0": f"{stem}.convolution",
        "BatchNorm_0": f"{stem}.normalization",
        "Dense_0": "classifier.1",
    }
    for stage in range(STAGES):
        for block in range(BLOCKS):
            ours = f"BasicBlock_{BLOCKS * stage + block}"
            theirs = f"resnet.encoder.stages.{stage}.layers.{block}"
            parts = ["layer.0", "layer.1"] + (["shortcut"] if stage and not block else [])
            found[ours] = theirs
            for i, part in enumerate(parts):
                found[f"{ours}.Conv_{i}"] = f"{theirs}.{part}.convolution"
                found[f"{ours}.BatchNorm_{i}"] = f"{theirs}.{part}.normalization"
    return found
