"""Image files and arrays of images as squares of one size.

The short side is scaled to `size` (bilinear, with antialiasing) and the long side is cut to it, equally at both ends.
Transparent pixels lie on white, the camera's orientation (EXIF) is respected, 16 bits become 8. Of an animation the
first frame counts. A file that is stored as grey has one channel, any other has three.

Only the formats below are opened, and none of them runs anything (PostScript would).
"""

import io
import os
import stat
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxmodels.data.downsampling import box_means
from jaxmodels.data.readers.paths import LFS_POINTER, is_lfs_pointer, list_problems
from jaxmodels.data.readers.splitting import Split


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = (
    89_478_485  # 256 MiB at three bytes each; from there on Pillow, too, suspects a decompression bomb
)
NO_SUCH_FILE = "there is no such file"
THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes outside of Python's lock


Resize = Literal["bilinear", "box"]  # both average what they shrink


def read_images(
    sources: Sequence[Path | bytes], *, size: int, resize: Resize = "bilinear"
) -> tuple[UInt8[np.ndarray, "n size size c"], list[str | None]]:
    """The images that can be read, and for every source why it could not be read, or `None`.

    A source is the path of a file, or the content of one. There is one channel if all images are grey, otherwise three.
    """
    images = np.empty((len(sources), size, size, 1), np.uint8)
    reasons: list[str | None] = []
    count = 0
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        # Odd metadata is of no interest here, and what matters comes back as a reason.
        warnings.filterwarnings("ignore", module="PIL")
        for image in pool.map(partial(_read, size=size, resize=resize), sources):
            if isinstance(image, str):
                reasons.append(image)
                continue
            if image.shape[-1] > images.shape[-1]:
                images = np.repeat(images, 3, axis=-1)
            images[count] = image  # a grey one is repeated where the others have three channels
            count += 1
            reasons.append(None)
    return images[:count], reasons


def _read(source: Path | bytes, size: int, resize: Resize) -> UInt8[np.ndarray, "size size c"] | str:
    """The image, or why it cannot be read."""
    too_large = f"more than {MAX_PIXELS:,} pixels, perhaps a decompression bomb"
    try:
        if isinstance(source, Path) and not stat.S_ISREG(
            source.stat().st_mode
        ):  # neither wait nor read for ever
            return "not a regular file"
        with Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
        ) as image:
            if image.width * image.height > MAX_PIXELS:
                return too_large
            image.draft(None, (2 * size, 2 * size))  # large JPEGs are decoded at a fraction of their size
            image.load()  # what is wrong with the pixels shall be known before the notes are read
            return crop_square(upright(image), size, resize=resize)
    except Image.DecompressionBombError:
        return too_large
    except FileNotFoundError:
        return NO_SUCH_FILE
    except PermissionError:
        return "not enough permission to read it"
    except UnidentifiedImageError:
        if isinstance(source, Path) and is_lfs_pointer(source):
            return LFS_POINTER
        return f"no image in one of the formats {', '.join(FORMATS)}"
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        return str(error) or type(error).__name__


def upright(image: Image.Image) -> Image.Image:
    """The image as the camera was held; as it is stored if the camera's notes are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever is wrong with the notes, the pixels were read
        return image


def unreadable_error(path: Path | str, problems: Sequence[str], count: int) -> ValueError:
    """The error for images that could not be read."""
    return ValueError(
        f"every image must be readable; got {len(problems)} of {count} in path={str(path)!r} which are not:"
        f"{list_problems(problems)}\n"
        "repair or remove them, or leave them out with skip_unreadable=True (--skip-unreadable)"
    )


def crop_square(
    image: Image.Image, size: int, *, resize: Resize = "bilinear"
) -> UInt8[np.ndarray, "size size c"]:
    """The middle square of an image, with one channel if it is grey and three if not.

    Raises:
        ValueError: black and white are not defined in its type of pixels.
    """
    if image.mode.startswith("I;16"):  # Pillow would cut off everything above 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of type {image.mode!r} have no fixed range: save the image with 8 bits")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert(mode)
    if resize == "box" and image.width == image.height and image.width % size == 0:
        pixels = np.asarray(image).reshape(1, image.height, image.width, -1)
        return box_means(pixels, image.width // size)[0]
    method = Image.Resampling.BOX if resize == "box" else Image.Resampling.BILINEAR
    return np.asarray(ImageOps.fit(image, (size, size), method)).reshape(size, size, -1)


def crop_squares(
    images: UInt8[np.ndarray, "n height width c"], size: int, *, resize: Resize = "bilinear"
) -> UInt8[np.ndarray, "n size size d"]:
    """`crop_square` for every image of an array; four channels are red, green, blue and alpha."""
    n, height, width, channels = images.shape
    if (height, width) == (size, size) and channels != 4:
        return images
    result = np.empty((n, size, size, 1 if channels == 1 else 3), np.uint8)
    for index, image in enumerate(images):
        result[index] = crop_square(
            Image.fromarray(image[..., 0] if channels == 1 else image), size, resize=resize
        )
    return result


def same_channels(
    images: Mapping[Split, UInt8[np.ndarray, "n height width _"]],
) -> dict[Split, UInt8[np.ndarray, "n height width c"]]:
    """Grey images get three channels when those of another split have three."""
    most = max(part.shape[-1] for part in images.values())
    return {
        split: part if part.shape[-1] == most else np.repeat(part, most, axis=-1)
        for split, part in images.items()
    }
