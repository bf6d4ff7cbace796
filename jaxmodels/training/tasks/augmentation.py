"""Training images, changed at random: shifted, mirrored, enlarged, recoloured. Shapes: b batch, n pixels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from jaxmodels.checks import require_integer


def shift_images(
    images: UInt8[np.ndarray, "b height width c"],
    draws: Sequence[np.random.Generator],
    *,
    shift: int,
    flip: bool = False,
    zoom: float = 0.0,
) -> UInt8[np.ndarray, "b height width c"]:
    """Shifts each image by up to `shift` pixels either way and perhaps mirrors it; its border is continued.

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


def require_shift(shift: int, sides: tuple[int, int]) -> int:
    """Returns `shift`; ValueError unless a part of an image stays visible after such a shift."""
    require_integer("shift", shift, minimum=0)
    if shift >= min(sides):
        raise ValueError(f"shift must be smaller than the images' sides, {sides}; got shift={shift}")
    return shift
