"""CoLT5 ViT, which sorts emoji into groups."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from benchmarks.workload import (
    BenchmarkPair,
    Curve,
    Inputs,
    Size,
    Workload,
    emoji_images,
    emoji_labels,
)


MEDIUM = {
    "image_size": 256,
    "patch_size": 16,
    "num_classes": 9,
    "dim": 384,
    "depth": 4,
    "attn_num_heavy_tokens_q": 16,
    "attn_num_heavy_tokens_kv": 16,
    "attn_heavy_dim_head": 64,
    "attn_heavy_heads": 6,
    "attn_light_dim_head": 32,
    "attn_light_heads": 4,
    "attn_light_window_size": 8,
    "ff_num_heavy_tokens": 64,
    "ff_heavy_mult": 4,
    "ff_light_mult": 2,
}
SMALL = MEDIUM | {
    "image_size": 64,
    "patch_size": 8,
    "dim": 64,
    "depth": 2,
    "attn_num_heavy_tokens_q": 4,
    "attn_num_heavy_tokens_kv": 6,
    "attn_heavy_dim_head": 16,
    "attn_heavy_heads": 4,
    "attn_light_dim_head": 16,
    "attn_light_heads": 2,
    "attn_light_window_size": 4,
    "ff_num_heavy_tokens": 16,
    "ff_light_mult": 1,
}
GPU = MEDIUM | {
    "dim": 1024,
    "depth": 6,
    "attn_heavy_heads": 8,
    "attn_light_dim_head": 64,
    "attn_light_heads": 8,
}


def at(image_size: int) -> Workload:
    """One image of this size."""
    return Workload(arguments=MEDIUM | {"image_size": image_size, "dim": 192}, batch=1)


class ColT5Pair(BenchmarkPair):
    name = "colt5"
    sizes: ClassVar[Mapping[Size, Workload]] = {
        "small": Workload(arguments=SMALL, batch=4),
        "medium": Workload(arguments=MEDIUM, batch=4),
        "gpu": Workload(arguments=GPU, batch=64),
    }
    curve = Curve("image side, px", (128, 256, 384, 512), at)

    def inputs(self, workload: Workload) -> dict[str, np.ndarray]:
        images = emoji_images(workload.batch, workload.arguments["image_size"])
        return {"images": images, "labels": emoji_labels(workload.batch)}

    def config(self, workload: Workload) -> Any:
        from jaxmodels.models.colt5 import ConditionalRoutedViTConfig

        return ConditionalRoutedViTConfig(**workload.arguments)

    def ours(self, workload: Workload, **layer: Any) -> Any:
        from jaxmodels.models.colt5 import ConditionalRoutedViT

        return ConditionalRoutedViT(self.config(workload), **layer)

    def theirs(self, workload: Workload) -> Any:
        import torch_reference

        return torch_reference.ConditionalRoutedViT(**workload.arguments)

    def call(self, model: Any, inputs: Inputs, workload: Workload, **routing: Any) -> Any:
        return model(inputs["images"], **routing)

    def loss_ours(self, model: Any, inputs: Inputs, workload: Workload, **routing: Any) -> Any:
        from jaxmodels.losses import mean_cross_entropy

        return mean_cross_entropy(model(inputs["images"], **routing), inputs["labels"])

    def loss_theirs(self, model: Any, inputs: Inputs, workload: Workload, **routing: Any) -> Any:
        from torch_reference.losses import mean_cross_entropy

        return mean_cross_entropy(model(inputs["images"], **routing), inputs["labels"])

    def pair(self, size: Size = "small", **options: Any) -> Any:
        """Both sides; the comparison makes JAX choose PyTorch's tokens where rounding decides."""
        return super().pair(
            size,
            routers=tuple(
                f"transformer.layers.{i}.{name}"
                for i in range(self.sizes[size].arguments["depth"])
                for name in ("0.q_router", "0.kv_router", "1.router")
            ),
            routing_ours=lambda model, inputs: model.routing(inputs["images"]),
            routing_theirs=lambda model, inputs: model.routing(inputs["images"]),
            **options,
        )


PAIR = ColT5Pair()
pair, jax_side, torch_side = PAIR.pair, PAIR.jax_side, PAIR.torch_side
