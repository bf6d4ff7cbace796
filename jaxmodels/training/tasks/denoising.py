"""Denoising with GLOM, as its package recommends, and a linear probe of the top level.

The image is decoded from the top level after `levels` + 1 steps. The published recipe runs 2 × `levels` steps and
decodes the same one of them. The later steps would cost time and receive no gradient, so they are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Float32, Int, UInt8

from jaxmodels.checks import require_divisible
from jaxmodels.data.datasets import LabelledImages, LabelledSplits
from jaxmodels.data.preprocessing import Preprocessing, scale_pixels
from jaxmodels.data.readers.image_files import Resize
from jaxmodels.losses import denoising_iters, image_from_patches, squared_error
from jaxmodels.models.glom import Glom, GlomConfig
from jaxmodels.nn import Linear, at_least_float32
from jaxmodels.training.draws import Draws
from jaxmodels.training.task import Batch, Call, Exported, Metric, Outputs, Sample, Split, Unit
from jaxmodels.training.tasks.augmentation import require_shift, shift_images
from jaxmodels.training.tasks.baselines.images import LinearFilter, classify_pixels, logistic_regression
from jaxmodels.training.tasks.classification import describe_splits
from jaxmodels.training.tasks.evaluation import (
    call_in_batches,
    image_preprocessing,
    require_image_splits,
    training_inputs,
)
from jaxmodels.training.tasks.figures.images import island_figure, reconstruction_figure
from jaxmodels.training.tasks.inputs import add_noise, scale_images
from jaxmodels.training.tasks.psnr import psnr


FILTERED = 512  # training images to which the linear filter is fitted
RECONSTRUCTIONS = 8  # reconstructions
ISLANDS = 2  # images whose columns are drawn


class Denoiser(nnx.Module):
    """A GLOM and the linear map from its top level to the pixels of a patch."""

    def __init__(self, glom: Glom, decoder: Linear) -> None:
        self.glom = glom
        self.decoder = decoder

    def __call__(self, noised: Float[Array, "b height width 3"]) -> Float[Array, "b height width 3"]:
        """The cleaned images."""
        patches = self.decoder(self.top(noised))  # b n (p1 p2 c)
        return image_from_patches(patches, patch_size=self.glom.config.patch_size, height=noised.shape[1])

    def top(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        """The top level at the step that is decoded."""
        return self.glom(images, iters=denoising_iters(self.glom.config.levels))[:, :, -1]


class Denoising:
    """Mean squared error between the clean image and the one decoded from a noised one.

    Args:
      config: `image_size` is replaced by that of the data, see the attribute `config`.
      splits: the data; grey images are repeated in three channels. The classes serve the probe only.
      noise: standard deviation of the noise, for pixels between -1 and 1.
      shift: training images are shifted by up to this many pixels, at random.
      resize: how the images of `splits` were resized; saved with the model.

    Raises:
      ValueError: an argument out of range; data without images, or of a size that does not fit.
    """

    name = "denoising"
    unit = Unit("images")
    metric = Metric(name="psnr", better="higher")

    def __init__(
        self,
        config: GlomConfig,
        splits: LabelledSplits,
        *,
        noise: float,
        shift: int,
        resize: Resize = "bilinear",
    ) -> None:
        require_image_splits(splits)
        if not 0 < noise < float("inf"):
            raise ValueError(f"noise must be a finite number > 0; got noise={noise!r}")
        _, height, width, _ = splits.train.images.shape
        for name, side in (("height", height), ("width", width)):
            require_divisible(f"image {name}", side, "patch_size", config.patch_size)
        self.shift = require_shift(shift, (height, width))
        self.noise, self.resize = noise, resize
        self.splits = replace(
            splits, **{name: _in_color(getattr(splits, name)) for name in ("train", "validation", "test")}
        )
        self.examples = len(splits.train)
        self.config = replace(config, image_size=max(height, width))
        self.functions: dict[str, Callable[[Any, Batch], Any]] = {
            "clean": lambda model, batch: at_least_float32(model(batch["noised"])),
            "features": _features,
            "states": _states,
        }

    def model(self, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs) -> Denoiser:
        """GLOM and decoder with fresh weights."""
        layer: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        glom = Glom(self.config, **layer)
        return Denoiser(glom, Linear(self.config.dim, 3 * self.config.patch_size**2, **layer))

    def batch(self, indices: Int[np.ndarray, " b"], draws: Draws) -> dict[str, np.ndarray]:
        """{"images": (b, height, width, 3) bytes, "noise_key": (b, 2)}."""
        images = shift_images(self.splits.train.images[indices], draws, shift=self.shift)
        return {"images": images, "noise_key": draws.keys()}

    def inputs(self, batch: Batch) -> Batch:
        """{"clean", "noised": (b, height, width, 3) float32}."""
        clean = scale_images(batch["images"])
        return {"clean": clean, "noised": add_noise(clean, batch["noise_key"], deviation=self.noise)}

    def forward(self, model: Denoiser, batch: Batch, rngs: nnx.Rngs | None) -> Outputs:
        """The mean squared error of every image."""
        return {"squared_error": squared_error(model(batch["noised"]), batch["clean"])}

    def loss(self, model: Denoiser, outputs: Outputs) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over the batch, and the same in dB."""
        loss = outputs["squared_error"].mean()
        return loss, {"psnr": -10 * jnp.log10(loss / 4)}

    def evaluate(self, call: Call, split: Split) -> dict[str, float]:
        """PSNR in dB over all pixels; on the test split also top-1 and top-5 of the linear probe.

        The probe is a logistic regression on the top level of clean images, its columns averaged in a grid
        of at most 4 × 4 parts (`probe_grid`), at the step that is decoded. There is none where all images
        are of one class.
        """
        clean, noised = self._held_out(split)
        cleaned = call_in_batches(call, "clean", len(clean), lambda part: {"noised": noised[part]})
        metrics = {"psnr": psnr(cleaned, clean)}
        if split == "test" and len(self.splits.class_names) > 1:
            train, validation, test = self.splits.train, self.splits.validation, self.splits.test
            probe = logistic_regression(
                self._top(call, train.images),
                train.labels,
                self._top(call, test.images),
                test.labels,
                validation_x=self._top(call, validation.images),
                validation_y=validation.labels,
            )
            metrics |= {f"probe_{name}": value for name, value in probe.items()}
        return metrics

    def baselines(self) -> dict[str, dict[str, float]]:
        """For PSNR the noised images and a linear filter; for the probe what classifies pixels."""
        clean, noised = self._held_out("test")
        results = {
            "noised images": {"psnr": psnr(noised, clean)},
            "7×7 linear filter": {"psnr": psnr(self._filter(noised), clean)},
        }
        if len(self.splits.class_names) > 1:
            for name, metrics in classify_pixels(self.splits).items():
                results[f"{name} (pixels)"] = {f"probe_{key}": value for key, value in metrics.items()}
        return results

    def samples(self, call: Call) -> list[Sample]:
        """Reconstructions, and islands of agreement."""
        clean, noised = self._held_out("test")
        shown = np.unique(np.linspace(0, len(clean) - 1, RECONSTRUCTIONS + 2).round().astype(int)[1:-1])
        cleaned = call_in_batches(call, "clean", len(shown), lambda part: {"noised": noised[shown[part]]})
        rows = {
            "clean": clean[shown],
            "noised": noised[shown],
            "linear filter": self._filter(noised[shown]),
            "GLOM": cleaned,
        }
        samples = [
            training_inputs(self, ("clean", "noised")),
            Sample(
                title="Reconstructions",
                caption="Test images, the same with noise, and what a 7×7 linear filter and GLOM make of it.",
                figure=reconstruction_figure(rows),
            ),
        ]
        chosen = shown[: ISLANDS * 2 : 2]
        images = self.splits.test.images[chosen]
        side = self.config.patch_size
        for image, states in zip(images, call("states", {"images": scale_pixels(images)}), strict=True):
            grid = rearrange(states, "t (h w) l d -> t h w l d", h=image.shape[0] // side)
            samples.append(
                Sample(
                    title="Islands of agreement",
                    caption="The state of every column of a clean image: levels from bottom to top, steps from "
                    "left to right, the initial state first. Equal colours are equal states (three principal "
                    "components of each level); the number is the mean cosine between neighbouring columns.",
                    figure=island_figure(image, grid),
                )
            )
        return samples

    def export(self, model: Denoiser) -> Exported:
        """GLOM, and beside it the linear map from its top level to the pixels of a patch, in Flax's layout."""
        decoder = nnx.to_pure_dict(nnx.state(model.decoder))
        images = image_preprocessing(self.splits.train.images.shape, self.resize)
        return Exported(
            model=model.glom,
            preprocessing=Preprocessing(images=images),
            decoder={f"decoder.{name}": np.asarray(value) for name, value in decoder.items()},
        )

    def describe(self) -> dict[str, Any]:
        return {
            **describe_splits(self.splits),
            "classes": list(self.splits.class_names),
            "noise": self.noise,
            "shift": self.shift,
        }

    def _noised(
        self,
        clean: Float32[np.ndarray, "b height width 3"],
        draws: Sequence[np.random.Generator],
    ) -> Float32[np.ndarray, "b height width 3"]:
        noise = np.stack([draw.standard_normal(clean.shape[1:], np.float32) for draw in draws])
        return clean + np.float32(self.noise) * noise

    def _held_out(
        self, split: Split
    ) -> tuple[Float32[np.ndarray, "n height width 3"], Float32[np.ndarray, "n height width 3"]]:
        """Clean and noised images; the noise of an image depends on its place in the split alone."""
        clean = scale_pixels(getattr(self.splits, split).images)
        return clean, self._noised(clean, [np.random.default_rng((1, place)) for place in range(len(clean))])

    @cached_property
    def _filter(self) -> LinearFilter:
        """A linear filter, fitted to evenly spaced training images."""
        count = min(FILTERED, self.examples)
        chosen = np.linspace(0, self.examples - 1, count).round().astype(int)
        clean = scale_pixels(self.splits.train.images[chosen])
        return LinearFilter(
            self._noised(clean, [np.random.default_rng((2, int(place))) for place in chosen]), clean
        )

    def _top(self, call: Call, images: UInt8[np.ndarray, "n height width 3"]) -> Float[np.ndarray, "n d"]:
        return call_in_batches(
            call, "features", len(images), lambda part: {"images": scale_pixels(images[part])}
        )


def _in_color(part: LabelledImages) -> LabelledImages:
    """Grey images in three channels."""
    if part.images.shape[-1] == 3:
        return part
    return replace(part, images=np.repeat(part.images, 3, axis=-1))


def _features(model: Denoiser, batch: Batch) -> Float[Array, "b f"]:
    """What the probe reads: the parts of the top level one after the other."""
    _, height, width, _ = batch["images"].shape
    top = at_least_float32(model.top(batch["images"]))
    grid = probe_grid(height, width, model.glom.config.patch_size)
    return reduce(top, "b (x i y j) d -> b (x y d)", "mean", **grid)


def probe_grid(height: int, width: int, patch_size: int) -> dict[str, int]:
    """Cuts the columns of GLOM into x × y equal parts of i × j; x and y are the largest divisors up to 4."""
    rows, columns = height // patch_size, width // patch_size
    x, y = (max(k for k in range(1, 5) if side % k == 0) for side in (rows, columns))
    return {"x": x, "i": rows // x, "y": y, "j": columns // y}


def _states(model: Denoiser, batch: Batch) -> Float[Array, "b t n l d"]:
    """The states of all columns and levels after 0, 1, … 2 · levels steps."""
    return at_least_float32(jnp.swapaxes(model.glom(batch["images"], return_all=True), 0, 1))
