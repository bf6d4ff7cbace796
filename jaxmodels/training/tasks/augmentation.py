"""Training images, changed at random: shifted, mirrored, enlarged here; recoloured and noised by `inputs.py`.

Shapes: b batch, n pixels of a side.
"""

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from jaxmodels.checks import require_integer
from jaxmodels.training.draws import Draws


def shift_images(
    images: UInt8[np.ndarray, "b height width c"],
    draws: Draws,
    *,
    shift: int,
    flip: bool = False,
    zoom: float = 0.0,
) -> UInt8[np.ndarray, "b height width c"]:
    """Shifts each image by up to `shift` pixels either way and perhaps mirrors it; its border is continued.

    With `zoom` each is also enlarged or reduced by up to that share, about its middle.
    """
    if not (shift or flip or zoom):
        return images
    b, height, width, _ = images.shape
    shifts = draws.integers(-shift, shift + 1, 2)
    mirrored = draws.uniform(0, 1) < 0.5 if flip else np.zeros(b, bool)
    if not zoom:
        images = _shifted(images, shifts, shift)
        images[mirrored] = images[mirrored, :, ::-1]
        return images
    rows, columns = np.arange(height) - shifts[:, :1], np.arange(width) - shifts[:, 1:]  # b height, b width
    columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    factors = draws.uniform(1 - zoom, 1 + zoom, 1)
    rows, columns = _zoomed(rows, height, factors), _zoomed(columns, width, factors)
    return _pixels(images, np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))


def _shifted(
    images: UInt8[np.ndarray, "b height width c"], shifts: Int[np.ndarray, "b 2"], most: int
) -> UInt8[np.ndarray, "b height width c"]:
    """Every image moved down and to the right by its `shifts`, each at most `most`; a new array.

    `_pixels` can do the same. Rows, and windows of rows that are continued both ways, need half of its time.
    """
    b, height, width, c = images.shape
    rows = np.clip(np.arange(height) - shifts[:, :1], 0, height - 1) + height * np.arange(b)[:, None]
    items = np.ascontiguousarray(images).reshape(-1).view(f"V{width * c}")
    taken = items.take(rows.reshape(-1), mode="clip").view(np.uint8).reshape(images.shape)
    continued = np.empty((b, height, width + 2 * most, c), np.uint8)
    continued[:, :, :most] = taken[:, :, :1]
    continued[:, :, most : most + width] = taken
    continued[:, :, most + width :] = taken[:, :, -1:]
    windows = sliding_window_view(continued.reshape(b, height, -1), width * c, axis=2)
    return windows[np.arange(b), :, (most - shifts[:, 1]) * c].reshape(images.shape)


def _pixels(
    images: UInt8[np.ndarray, "b height width c"],
    rows: Int[np.ndarray, "b height"],
    columns: Int[np.ndarray, "b width"],
) -> UInt8[np.ndarray, "b height width c"]:
    """Every image with its pixels taken from these rows and columns."""
    b, height, width, c = images.shape
    first = np.arange(b)[:, None] * height + rows  # of the rows of all images, one after the other
    places = first[:, :, None] * width + columns[:, None]
    # A pixel is one item, not c of them: a quarter of the time of indexing by image, row and column.
    pixels = np.ascontiguousarray(images).reshape(-1).view(f"V{c}")
    return pixels.take(places.reshape(-1), mode="clip").view(np.uint8).reshape(images.shape)


def _zoomed(
    places: Int[np.ndarray, "b n"], side: int, factors: Float[np.ndarray, "b 1"]
) -> Int[np.ndarray, "b n"]:
    middle = (side - 1) / 2
    return np.rint((places - middle) / factors + middle).astype(int)


def draw_recoloring(draws: Draws, *, channels: int, strength: float) -> Float32[np.ndarray, "b 2 c"]:
    """By what share each channel of an image grows, and what is added to it, for `inputs.recolor_images`."""
    return draws.uniform(-strength, strength, 2, channels).astype(np.float32)


def require_shift(shift: int, sides: tuple[int, int]) -> int:
    """Returns `shift`; ValueError unless a part of an image stays visible after such a shift."""
    require_integer("shift", shift, minimum=0)
    if shift >= min(sides):
        raise ValueError(f"shift must be smaller than the images' sides, {sides}; got shift={shift}")
    return shift
