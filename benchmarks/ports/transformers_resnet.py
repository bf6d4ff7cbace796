"""ResNet, in evaluation and in training mode: `FlaxResNetModel` against `ResNetModel`."""

from transformers import FlaxResNetModel, ResNetConfig, ResNetModel

from benchmarks.ports.common import channels_last, images, transformers_pair
from jaxmodels.compare import Pair


MODES = ("eval", "train")


def pair(mode: str = "eval") -> Pair:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="bottleneck", num_labels=3
    )
    return transformers_pair(
        f"transformers_resnet, {mode}",
        FlaxResNetModel(config, input_shape=(1, 32, 32, 3)),
        ResNetModel(config),
        {"pixel_values": images()},
        lambda model, inputs: model(inputs["pixel_values"]),
        train=mode == "train",
        to_ours=channels_last,
        outputs=("last_hidden_state", "pooler_output"),
    )
