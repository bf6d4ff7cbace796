"""MaMMUT, which reads emoji with their captions; its loss is that of captions and of matching both."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from benchmarks.workload import BenchmarkPair, Curve, Inputs, Size, Workload, emoji_images, emoji_indices
from jaxmodels.data.tokens import NUM_TOKENS, encode


MEDIUM = {
    "dim": 384,
    "num_tokens": NUM_TOKENS,
    "depth": 6,
    "image_dim": 384,
    "num_img_queries": 64,
    "heads": 6,
}
ENCODER = {
    "image_size": 128,
    "patch_size": 16,
    "num_classes": 9,
    "dim": 384,
    "depth": 4,
    "heads": 6,
    "mlp_dim": 1536,
    "patch_dropout": 0.0,
}


def at(batch: int) -> Workload:
    """The medium size with another number of examples."""
    return Workload(arguments=MEDIUM, encoder=ENCODER, batch=batch, length=128)


class MaMMUTPair(BenchmarkPair):
    name = "mammut"
    sizes: ClassVar[Mapping[Size, Workload]] = {
        "small": Workload(
            arguments=MEDIUM
            | {"dim": 64, "depth": 2, "image_dim": 64, "num_img_queries": 16, "dim_head": 16, "heads": 4},
            encoder=ENCODER
            | {"image_size": 64, "dim": 64, "depth": 2, "heads": 4, "mlp_dim": 128, "dim_head": 16},
            batch=4,
            length=64,
        ),
        "medium": at(4),
        "gpu": Workload(
            arguments=MEDIUM
            | {
                "dim": 1024,
                "num_tokens": 20_000,
                "depth": 12,
                "image_dim": 1024,
                "num_img_queries": 256,
                "heads": 16,
            },
            encoder=ENCODER | {"image_size": 256, "dim": 1024, "depth": 12, "heads": 16, "mlp_dim": 4096},
            batch=32,
            length=512,
        ),
    }
    curve = Curve("batch", (1, 2, 4, 8), at)

    def inputs(self, workload: Workload) -> dict[str, np.ndarray]:
        from jaxmodels.data import emoji

        assert workload.encoder is not None
        known = emoji("openmoji", skin_tones=False).captions
        captions = [_fill(known[i], workload.length - 1) for i in emoji_indices(workload.batch)]
        images = emoji_images(workload.batch, workload.encoder["image_size"])
        return {"images": images, "text": encode(captions, workload.length).astype(np.int64)}

    def config(self, workload: Workload) -> Any:
        from jaxmodels.models.mammut import MaMMUTConfig

        return MaMMUTConfig(**workload.arguments)

    def encoder_config(self, workload: Workload) -> Any:
        from jaxmodels.models.simple_vit import SimpleViTConfig

        return SimpleViTConfig(**(workload.encoder or {}))

    def ours(self, workload: Workload, **layer: Any) -> Any:
        from jaxmodels.models.mammut import MaMMUT
        from jaxmodels.models.simple_vit import SimpleViT

        return MaMMUT(self.config(workload), SimpleViT(self.encoder_config(workload), **layer), **layer)

    def theirs(self, workload: Workload) -> Any:
        import torch_reference
        from torch_reference.simple_vit import TokenExtractor

        encoder = TokenExtractor(torch_reference.SimpleViT(**(workload.encoder or {})))
        return torch_reference.MaMMUT(img_encoder=encoder, **workload.arguments)

    def call(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        return model(inputs["text"], images=inputs["images"])

    def loss_ours(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        return model.loss(inputs["text"], inputs["images"]).total

    def loss_theirs(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        return model(inputs["text"], images=inputs["images"], return_loss=True)


def _fill(caption: str, length: int) -> str:
    """Repeats the caption up to `length` bytes, without a part of a character at the end."""
    return (f"{caption} " * length).encode()[:length].decode(errors="ignore")


PAIR = MaMMUTPair()
pair, jax_side, torch_side = PAIR.pair, PAIR.jax_side, PAIR.torch_side
