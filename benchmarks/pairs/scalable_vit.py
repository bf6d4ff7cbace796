"""ScalableViT, which sorts emoji into groups."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from benchmarks.workload import BenchmarkPair, Curve, Inputs, Size, Workload, emoji_images, emoji_labels


MEDIUM = {
    "num_classes": 9,
    "dim": 64,
    "depth": (2, 2, 6, 2),
    "heads": (2, 4, 8, 16),
    "reduction_factor": (8, 4, 2, 1),
    "window_size": (16, 8, None, None),
}
SMALL = MEDIUM | {
    "dim": 32,
    "depth": (1, 1, 1),
    "heads": (1, 2, 4),
    "reduction_factor": (4, 2, 1),
    "window_size": (8, 4, None),
}
GPU = MEDIUM | {
    "depth": (2, 2, 20, 2),
    "ssa_dim_key": (40, 40, 40, 32),
    "window_size": (64, 32, None, None),
}


def at(image_size: int) -> Workload:
    """One image of this size."""
    return Workload(arguments=MEDIUM | {"dim": 32}, batch=1, image_size=image_size)


class ScalableViTPair(BenchmarkPair):
    name = "scalable_vit"
    sizes: ClassVar[Mapping[Size, Workload]] = {
        "small": Workload(arguments=SMALL, batch=4, image_size=64),
        "medium": Workload(arguments=MEDIUM, batch=2, image_size=128),
        "gpu": Workload(arguments=GPU, batch=64, image_size=256),
    }
    curve = Curve("image side, px", (128, 256, 384, 512), at)

    def inputs(self, workload: Workload) -> dict[str, np.ndarray]:
        images = emoji_images(workload.batch, workload.image_size)
        return {"images": images, "labels": emoji_labels(workload.batch)}

    def config(self, workload: Workload) -> Any:
        from jaxmodels.models.scalable_vit import ScalableViTConfig

        return ScalableViTConfig(**workload.arguments)

    def ours(self, workload: Workload, **layer: Any) -> Any:
        from jaxmodels.models.scalable_vit import ScalableViT

        return ScalableViT(self.config(workload), **layer)

    def theirs(self, workload: Workload) -> Any:
        import torch_reference

        return torch_reference.ScalableViT(**workload.arguments)

    def call(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        return model(inputs["images"])

    def loss_ours(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        from jaxmodels.losses import mean_cross_entropy

        return mean_cross_entropy(model(inputs["images"]), inputs["labels"])

    def loss_theirs(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        from torch_reference.losses import mean_cross_entropy

        return mean_cross_entropy(model(inputs["images"]), inputs["labels"])


PAIR = ScalableViTPair()
pair, jax_side, torch_side = PAIR.pair, PAIR.jax_side, PAIR.torch_side
