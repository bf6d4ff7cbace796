"""GLOM. Its training step denoises images; the steps of its forward pass are a hyperparameter of the call.

`jaxmodels benchmark benchmarks/pairs/glom.py` times the small size, `python -m benchmarks --models glom` all sizes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from benchmarks.workload import BenchmarkPair, Curve, Inputs, Size, Workload, emoji_images


# These sizes are the benchmark's own. Presets and comparisons have similar ones, but must be able to change theirs
# without making earlier measurements incomparable.
MEDIUM = {"dim": 256, "levels": 5, "image_size": 112, "patch_size": 14}


def at(levels_and_iters: tuple[int, int]) -> Workload:
    """The medium size with other levels and steps."""
    levels, iters = levels_and_iters
    return Workload(arguments=MEDIUM | {"dim": 128, "levels": levels}, batch=2, iters=iters)


class GlomPair(BenchmarkPair):
    name = "glom"
    sizes: ClassVar[Mapping[Size, Workload]] = {
        "small": Workload(
            arguments=MEDIUM | {"dim": 64, "levels": 4, "image_size": 64, "patch_size": 8}, batch=4
        ),
        "medium": Workload(arguments=MEDIUM, batch=2),
        "gpu": Workload(arguments=MEDIUM | {"dim": 512, "levels": 6, "image_size": 224}, batch=32),
    }
    curve = Curve("levels, iterations", ((3, 3), (3, 6), (6, 6), (6, 12), (9, 18)), at)

    def inputs(self, workload: Workload) -> dict[str, np.ndarray]:
        dim, pixels = workload.arguments["dim"], 3 * workload.arguments["patch_size"] ** 2
        clean = emoji_images(workload.batch, workload.arguments["image_size"])
        b, channels, height, width = clean.shape
        rng = np.random.default_rng(0)
        decoder = rng.standard_normal((dim, pixels)) / dim**0.5
        # Drawn with channels last, as when the first results were measured.
        noise = rng.standard_normal((b, height, width, channels), np.float32).transpose(0, 3, 1, 2)
        return {"clean": clean, "images": clean + noise, "decoder": decoder.astype(np.float32)}

    def config(self, workload: Workload) -> Any:
        from jaxmodels.models.glom import GlomConfig

        return GlomConfig(**workload.arguments)

    def ours(self, workload: Workload, **layer: Any) -> Any:
        from jaxmodels.models.glom import Glom

        return Glom(self.config(workload), **layer)

    def theirs(self, workload: Workload) -> Any:
        import torch_reference

        return torch_reference.Glom(**workload.arguments)

    def call(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        return model(inputs["images"], iters=workload.iters)

    def loss_ours(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        from jaxmodels.losses import denoising_iters, image_from_patches, squared_error

        top = model(inputs["images"], iters=denoising_iters(workload.arguments["levels"]))[:, :, -1]
        patches, clean = top @ inputs["decoder"].astype(top.dtype), inputs["clean"]
        patch_size = workload.arguments["patch_size"]
        image = image_from_patches(patches, patch_size=patch_size, height=clean.shape[1])
        return squared_error(image, clean).mean()

    def loss_theirs(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        from torch_reference.losses import denoising_iters, image_from_patches, squared_error

        top = model(inputs["images"], iters=denoising_iters(workload.arguments["levels"]))[:, :, -1]
        patches, clean = top @ inputs["decoder"], inputs["clean"]
        patch_size = workload.arguments["patch_size"]
        image = image_from_patches(patches, patch_size=patch_size, height=clean.shape[2])
        return squared_error(image, clean).mean()


PAIR = GlomPair()
pair, jax_side, torch_side = PAIR.pair, PAIR.jax_side, PAIR.torch_side
