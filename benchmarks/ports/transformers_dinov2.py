"""DINOv2 at another image size than its position embeddings: `FlaxDinov2Model` against `Dinov2Model`."""

from transformers import Dinov2Config, Dinov2Model, FlaxDinov2Model

from benchmarks.ports.common import channels_last, images, transformers_pair
from jaxmodels.compare import Pair


SIZES = {"": 16, ", position embeddings resized": 32}  # pixels; the position embeddings are those of 16


def pair() -> list[Pair]:
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=16,
        patch_size=4,
        use_mask_token=False,
    )
    return [
        transformers_pair(
            f"transformers_dinov2{what}",
            FlaxDinov2Model(config, input_shape=(1, 16, 16, 3)),
            Dinov2Model(config),
            {"pixel_values": images(size)},
            lambda model, inputs: model(inputs["pixel_values"]),
            named=True,
            to_ours=channels_last,
            outputs=("last_hidden_state", "pooler_output"),
        )
        for what, size in SIZES.items()
    ]
