"""Training images, changed at random: shifted, mirrored, enlarged here; recoloured and noised by `inputs.py`.

Shapes: b batch, n pixels of a side.
"""

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

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
    _, height, width, _ = images.shape
    if not (shift or flip or zoom):
        return images
    down, right = draws.integers(-shift, shift + 1, 2).T[..., None]
    rows, columns = np.arange(height) - down, np.arange(width) - right  # b height, b width
    if flip:
        mirrored = draws.uniform(0, 1) < 0.5
        columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    if zoom:
        factors = draws.uniform(1 - zoom, 1 + zoom, 1)
        rows, columns = _zoomed(rows, height, factors), _zoomed(columns, width, factors)
    return _pixels(images, np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))


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
