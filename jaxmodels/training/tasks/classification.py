"""Classification of images with ScalableViT or CoLT5's conditionally routed ViT."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from jaxmodels.data.datasets import LabelledSplits
from jaxmodels.data.preprocessing import Preprocessing, scale_pixels
from jaxmodels.data.readers.image_files import Resize
from jaxmodels.losses import cross_entropy
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig
from jaxmodels.nn import at_least_float32
from jaxmodels.training.draws import Draws
from jaxmodels.training.experiment import require_share
from jaxmodels.training.task import Batch, Call, Exported, Metric, Outputs, Sample, Split, Unit
from jaxmodels.training.tasks.augmentation import draw_recoloring, require_shift, shift_images
from jaxmodels.training.tasks.baselines.images import accuracies, classify_pixels
from jaxmodels.training.tasks.checksum import data_checksum
from jaxmodels.training.tasks.evaluation import (
    call_in_batches,
    image_preprocessing,
    require_image_splits,
    training_inputs,
)
from jaxmodels.training.tasks.figures.images import confusion_figure, prediction_figure, routing_figure
from jaxmodels.training.tasks.inputs import image_inputs


PREDICTIONS = 28  # predictions
ROUTED = 6  # images whose routing is drawn


class Classification:
    """One label per image: cross-entropy, top-1 and top-5 accuracy.

    Args:
      config: configuration of either model. The number of classes, the channels and the image size are replaced
        by those of the data; the attribute `config` has the result.
      splits: the data.
      shift: training images are shifted by up to this many pixels, at random.
      flip: mirror every second training image, at random.
      zoom, recolor: enlarge or reduce training images, and change their channels, by up to this share, at random.
      label_smoothing: share of the target spread evenly over all classes.
      resize: how the images of `splits` were resized; saved with the model.

    Raises:
      ValueError: an argument out of range; data without a second class, without images, or of a size that
        does not fit the configuration.
    """

    name = "classification"
    unit = Unit("images")
    metric = Metric(name="top1", better="higher")

    def __init__(
        self,
        config: ScalableViTConfig | ConditionalRoutedViTConfig,
        splits: LabelledSplits,
        *,
        shift: int,
        flip: bool,
        zoom: float = 0.0,
        recolor: float = 0.0,
        label_smoothing: float,
        resize: Resize = "bilinear",
    ) -> None:
        require_image_splits(splits)
        if len(splits.class_names) < 2:
            raise ValueError(
                f"classification needs at least 2 classes; got {list(splits.class_names)} in {splits.source}"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1); got label_smoothing={label_smoothing!r}")
        _, height, width, channels = splits.train.images.shape
        self.shift = require_shift(shift, (height, width))
        self.zoom, self.recolor = require_share("zoom", zoom), require_share("recolor", recolor)
        self.flip, self.label_smoothing, self.resize = flip, label_smoothing, resize
        self.splits = splits
        self.examples = len(splits.train)
        self.functions: dict[str, Callable[[Any, Batch], Any]] = {"logits": _logits}
        self.config: ScalableViTConfig | ConditionalRoutedViTConfig
        if isinstance(config, ConditionalRoutedViTConfig):
            self.functions["routing"] = _routing
            sides = {"image_size": height if height == width else (height, width)}
            self.config = replace(config, num_classes=len(splits.class_names), channels=channels, **sides)
        else:
            self.config = replace(config, num_classes=len(splits.class_names), channels=channels)

    def model(self, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        """The model with fresh weights."""
        if isinstance(self.config, ConditionalRoutedViTConfig):
            return ConditionalRoutedViT(self.config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        return ScalableViT(self.config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def batch(self, indices: Int[np.ndarray, " b"], draws: Draws) -> dict[str, np.ndarray]:
        """{"images": (b, height, width, c) bytes, "labels": (b,) int32}, and {"recoloring": (b, 2, c)}.

        The last is there with `recolor` only.
        """
        train = self.splits.train
        images = shift_images(train.images[indices], draws, shift=self.shift, flip=self.flip, zoom=self.zoom)
        batch = {"images": images, "labels": train.labels[indices]}
        if self.recolor:
            batch["recoloring"] = draw_recoloring(draws, channels=images.shape[-1], strength=self.recolor)
        return batch

    def inputs(self, batch: Batch) -> Batch:
        """{"images": (b, height, width, c) float32, "labels": (b,) int32}."""
        return {"images": image_inputs(batch), "labels": batch["labels"]}

    def forward(self, model: Any, batch: Batch, rngs: nnx.Rngs | None) -> Outputs:
        """Cross-entropy of every image, and whether its best guess is right."""
        logits = _logits(model, batch, rngs)
        return {
            "loss": cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing),
            "right": (logits.argmax(axis=-1) == batch["labels"]).astype(logits.dtype),
        }

    def loss(self, model: Any, outputs: Outputs) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over the batch."""
        return outputs["loss"].mean(), {"top1": outputs["right"].mean()}

    def evaluate(self, call: Call, split: Split) -> dict[str, float]:
        """Top-1, top-5, and the cross-entropy without label smoothing."""
        labels = getattr(self.splits, split).labels
        logits = self._logits(call, split)
        losses = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
        return {**accuracies(logits, labels), "loss": float(losses.mean())}

    def baselines(self) -> dict[str, dict[str, float]]:
        """The majority, and 5 nearest neighbours and logistic regression on pixels."""
        return classify_pixels(self.splits)

    def samples(self, call: Call) -> list[Sample]:
        """The confusion matrix, some predictions, and for CoLT5 what its routers select."""
        test, names = self.splits.test, self.splits.class_names
        logits = self._logits(call, "test")
        guesses = logits.argmax(axis=-1)
        counts = np.zeros((len(names), len(names)), int)
        np.add.at(counts, (test.labels, guesses), 1)
        shown = np.unique(np.linspace(0, len(test) - 1, PREDICTIONS).round().astype(int))
        right = int((guesses == test.labels).sum())
        samples = [
            training_inputs(self, ("images",)),
            Sample(
                title="Confusion matrix",
                caption=f"Test images by class (rows) and best guess (columns): {right} of {len(test)} are right. "
                "The shade is the share of the row.",
                figure=confusion_figure(counts, names),
            ),
            Sample(
                title="Predictions",
                caption=f"{len(shown)} test images at equal distances through the test data, with the best guess; "
                "where it is wrong, the right answer is below it.",
                figure=prediction_figure(test.images[shown], test.labels[shown], logits[shown], names),
            ),
        ]
        return samples + ([self._routing_sample(call)] if "routing" in self.functions else [])

    def _routing_sample(self, call: Call) -> Sample:
        """One image of each of the first classes."""
        test = self.splits.test
        of_class = [np.flatnonzero(test.labels == label) for label in range(len(self.splits.class_names))]
        shown = np.array([numbers[len(numbers) // 2] for numbers in of_class if len(numbers)][:ROUTED])
        masks = call_in_batches(
            call, "routing", len(shown), lambda part: {"images": scale_pixels(test.images[shown[part]])}
        )
        return Sample(
            title="Routed patches",
            caption="What the routers of each layer give to the heavy branch, outlined; the rest of the image, "
            "faded here, takes the light branch only. In attention the choice is made within each window.",
            figure=routing_figure(test.images[shown], masks),
        )

    def export(self, model: Any) -> Exported:
        """The model, with the names of its classes."""
        images = image_preprocessing(self.splits.train.images.shape, self.resize)
        return Exported(
            model=model,
            preprocessing=Preprocessing(images=images, class_names=self.splits.class_names),
        )

    def describe(self) -> dict[str, Any]:
        return {
            **describe_splits(self.splits),
            "classes": list(self.splits.class_names),
            "shift": self.shift,
            "flip": self.flip,
            "zoom": self.zoom,
            "recolor": self.recolor,
            "label_smoothing": self.label_smoothing,
        }

    def _logits(self, call: Call, split: Split) -> Float[np.ndarray, "n classes"]:
        images = getattr(self.splits, split).images
        return call_in_batches(
            call, "logits", len(images), lambda part: {"images": scale_pixels(images[part])}
        )


def describe_splits(splits: LabelledSplits) -> dict[str, Any]:
    """Where images come from, how many they are, and their shape."""
    return {
        "source": splits.source,
        "train": len(splits.train),
        "validation": len(splits.validation),
        "test": len(splits.test),
        "image_shape": list(splits.train.images.shape[1:]),
        "skipped": len(splits.skipped),
        "checksum": data_checksum(splits),
    }


def _logits(model: Any, batch: Batch, rngs: nnx.Rngs | None = None) -> Float[Array, "b classes"]:
    """In at least float32."""
    return at_least_float32(model(batch["images"], rngs=rngs))


def _routing(model: ConditionalRoutedViT, batch: Batch) -> Mapping[str, Bool[Array, "b layers h w"]]:
    """Which patches the feed-forward routers and the query routers of every layer select."""
    config, images = model.config, batch["images"]
    (p1, p2), window = config.patch_sides, config.attn_light_window_size
    h, w = images.shape[1] // p1, images.shape[2] // p2
    routed = model.routing(images)
    queries = [
        rearrange(
            _selected(router.indices, images.shape[0] * h * w // window**2, window**2),
            "(b h w) (w1 w2) -> b (h w1) (w w2)",
            h=h // window,
            w=w // window,
            w1=window,
        )
        for router in routed[0::3]
    ]
    tokens = [
        rearrange(_selected(router.indices, images.shape[0], h * w), "b (h w) -> b h w", h=h)
        for router in routed[2::3]
    ]
    return {"feed-forward": jnp.stack(tokens, axis=1), "attention": jnp.stack(queries, axis=1)}


def _selected(indices: Int[Array, "b 1 k"] | None, b: int, n: int) -> Bool[Array, "b n"]:
    """True at the selected tokens; None selects all."""
    if indices is None:
        return jnp.ones((b, n), bool)
    return jnp.zeros((b, n), bool).at[jnp.arange(b)[:, None], indices[:, 0]].set(True)
