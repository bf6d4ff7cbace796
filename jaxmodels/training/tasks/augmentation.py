"""Images on their way into a model and out of it: scale_pixels, moved at random, evaluated in batches of one size.

Shapes: b batch, n images.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from jaxmodels.checks import require_integer
from jaxmodels.data.datasets import CaptionedSplits, LabelledSplits
from jaxmodels.training.task import Call


EVALUATION_BATCH = 128


def scale_pixels(images: UInt8[np.ndarray, "b height width c"]) -> Float32[np.ndarray, "b height width c"]:
    """Pixels between -1 and 1."""
    return images.astype(np.float32) / 127.5 - 1


def unscale_pixels(images: Float32[np.ndarray, "b height width c"]) -> UInt8[np.ndarray, "b height width c"]:
    """The inverse of `scale_pixels`; what lies outside of [-1, 1] is cut off."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def psnr(images: Float[np.ndarray, "*b c"], clean: Float[np.ndarray, "*b c"]) -> float:
    """Peak signal-to-noise ratio in dB of images between -1 and 1; what lies outside is cut off first."""
    return float(-10 * np.log10(np.square((np.clip(images, -1, 1) - clean) / 2).mean()))


def shift_images(
    images: UInt8[np.ndarray, "b height width c"],
    draws: Sequence[np.random.Generator],
    *,
    shift: int,
    flip: bool = False,
    zoom: float = 0.0,
) -> UInt8[np.ndarray, "b height width c"]:
    """Each image, moved by up to `shift` pixels either way and perhaps mirrored; its border is continued.

    With `zoom` each is also enlarged or reduced by up to that share, about its middle.
    """
    _, height, width, _ = images.shape
    down, right = np.array([draw.integers(-shift, shift + 1, size=2) for draw in draws]).T[..., None]
    rows, columns = np.arange(height) - down, np.arange(width) - right  # b height, b width
    if flip:
        mirrored = np.array([draw.random() < 0.5 for draw in draws])
        columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    if zoom:
        factors = np.array([draw.uniform(1 - zoom, 1 + zoom) for draw in draws])[:, None]
        rows, columns = _zoomed(rows, height, factors), _zoomed(columns, width, factors)
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _zoomed(
    places: Int[np.ndarray, "b n"], side: int, factors: Float[np.ndarray, "b 1"]
) -> Int[np.ndarray, "b n"]:
    middle = (side - 1) / 2
    return np.rint((places - middle) / factors + middle).astype(int)


def recolor_images(
    images: Float32[np.ndarray, "b height width c"],
    draws: Sequence[np.random.Generator],
    *,
    strength: float,
) -> Float32[np.ndarray, "b height width c"]:
    """Images between -1 and 1 with every channel times 1 ± `strength` and plus ± `strength`, at random."""
    if strength == 0:
        return images
    drawn = np.array([draw.uniform(-strength, strength, (2, images.shape[-1])) for draw in draws], np.float32)
    gains, offsets = 1 + drawn[:, 0], drawn[:, 1]
    return np.clip(images * gains[:, None, None] + offsets[:, None, None], -1, 1)


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


def require_shift(shift: int, sides: tuple[int, int]) -> int:
    """Returns `shift`; ValueError unless some of an image stays when it is moved that far."""
    require_integer("shift", shift, minimum=0)
    if shift >= min(sides):
        raise ValueError(f"shift must be smaller than the images' sides, {sides}; got shift={shift}")
    return shift


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
