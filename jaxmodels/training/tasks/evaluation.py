"""What the image tasks share when they evaluate: batches of one size, and a measure of images. Shapes: b batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxmodels.data.datasets import CaptionedSplits, LabelledSplits
from jaxmodels.data.preprocessing import ImagePreprocessing
from jaxmodels.data.readers.image_files import Resize
from jaxmodels.training.task import Call


EVALUATION_BATCH = 128


def psnr(images: Float[np.ndarray, "*b c"], clean: Float[np.ndarray, "*b c"]) -> float:
    """Peak signal-to-noise ratio in dB of images between -1 and 1; what lies outside is cut off first."""
    return float(-10 * np.log10(np.square((np.clip(images, -1, 1) - clean) / 2).mean()))


def call_in_batches(
    call: Call, name: str, n: int, batch: Callable[[Int[np.ndarray, " b"]], Mapping[str, np.ndarray]]
) -> Any:
    """The outputs of `call(name, …)` for n images, `EVALUATION_BATCH` at a time.

    Args:
      call: runs a function of the task.
      name: of that function.
      n: images in all.
      batch: gives what the function reads, for these numbers of images. The last image fills up the last
        batch, so that only one shape is compiled.
    """
    numbers = np.minimum(np.arange(-(-n // EVALUATION_BATCH) * EVALUATION_BATCH), n - 1)
    outputs = [call(name, batch(part)) for part in numbers.reshape(-1, EVALUATION_BATCH)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *outputs)


def require_image_splits(splits: LabelledSplits | CaptionedSplits) -> None:
    """ValueError unless there are images of one size to train on, to validate with, and to test on."""
    shape = splits.train.images.shape[1:]
    for name in ("train", "validation", "test"):
        images = getattr(splits, name).images
        if not len(images):
            raise ValueError(f"every split must hold images; got none in {name} of {splits.source}")
        if images.shape[1:] != shape:
            raise ValueError(
                f"all images must have one shape; got {images.shape[1:]} in {name}, {shape} in train "
                f"of {splits.source}"
            )


def image_preprocessing(shape: tuple[int, ...], resize: Resize) -> ImagePreprocessing | None:
    """What makes images of this shape (n height width c) from files, and scales them; None unless they are square."""
    _, height, width, channels = shape
    return ImagePreprocessing(size=height, channels=channels, resize=resize) if height == width else None
