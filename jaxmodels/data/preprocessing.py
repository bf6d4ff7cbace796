"""From image files and texts to the inputs of a trained model: the same functions in training and afterwards.

A hub folder keeps them in `preprocessing.json`; `jaxmodels.load_preprocessing` reads that file.

Shapes: n images or texts, c channels, l ids.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32, Num, UInt8
from PIL import Image

from jaxmodels.checks import require_integer
from jaxmodels.data.readers.image_files import (
    Resize,
    crop_square,
    crop_squares,
    read_images,
    unreadable_error,
    upright,
)


def scale_pixels(
    images: UInt8[np.ndarray, "*n height width c"], *, offset: float = 127.5, scale: float = 127.5
) -> Float32[np.ndarray, "*n height width c"]:
    """(byte - offset) / scale: with the defaults, pixels between -1 and 1."""
    return images.astype(np.float32) / np.float32(scale) - np.float32(offset / scale)


def unscale_pixels(
    images: Num[np.ndarray, "*n height width c"], *, offset: float = 127.5, scale: float = 127.5
) -> UInt8[np.ndarray, "*n height width c"]:
    """The inverse of `scale_pixels`: rounded to the nearest byte, and clipped to what a byte can hold."""
    return np.rint(np.clip(np.asarray(images, np.float32) * scale + offset, 0, 255)).astype(np.uint8)


LARGEST_SIDE = 2**15  # pixels; a larger number in a file is a mistake that would take all memory


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """The middle square of an image, resized to `size` pixels a side, as scaled numbers.

    Attributes:
      size: height and width in pixels.
      channels: 3 for colour, 1 for grey.
      resize: "bilinear" with antialiasing, or "box", the mean of all pixels under a new one.
      offset, scale: a byte becomes (byte - offset) / scale.
    """

    size: int
    channels: int = 3
    resize: Resize = "bilinear"
    offset: float = 127.5
    scale: float = 127.5

    def __post_init__(self) -> None:
        if require_integer("size", self.size, minimum=1) > LARGEST_SIDE:
            raise ValueError(f"size must be at most {LARGEST_SIDE}; got size={self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour); got channels={self.channels!r}")
        if self.resize not in ("bilinear", "box"):
            raise ValueError(f"resize must be 'bilinear' or 'box'; got resize={self.resize!r}")
        for name in ("offset", "scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise ValueError(f"{name} must be a finite number; got {name}={value!r}")
        if self.scale <= 0:
            raise ValueError(f"scale must be > 0; got scale={self.scale!r}")

    def __call__(
        self, images: UInt8[np.ndarray, "n height width _"] | Sequence[str | os.PathLike[str] | Image.Image]
    ) -> Float32[np.ndarray, "n size size c"]:
        """The input of the model.

        Args:
          images: an array of bytes with 1, 3 or 4 channels, or a list of file names or Pillow images.

        Raises:
          ValueError: an array of another type or shape, or a file that is no readable image.
        """
        pixels = self._from_array(images) if isinstance(images, np.ndarray) else self._from_list(images)
        return scale_pixels(self._with_channels(pixels), offset=self.offset, scale=self.scale)

    def to_pixels(self, images: Num[Any, "n height width c"]) -> UInt8[np.ndarray, "n height width c"]:
        """Numbers on the scale of the model's inputs as bytes, for instance the output of a decoder."""
        return unscale_pixels(np.asarray(images), offset=self.offset, scale=self.scale)

    def _from_array(self, images: np.ndarray) -> UInt8[np.ndarray, "n size size _"]:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
            raise ValueError(
                "images must be a uint8 array of shape (n, height, width, channels) with 1, 3 or 4 channels, or a "
                f"list of files or Pillow images; got dtype={images.dtype}, shape={images.shape}; "
                "a single image needs a first axis: images[None]"
            )
        return crop_squares(images, self.size, resize=self.resize)

    def _from_list(
        self, images: Sequence[str | os.PathLike[str] | Image.Image]
    ) -> UInt8[np.ndarray, "n size size _"]:
        if isinstance(images, str | os.PathLike | Image.Image):
            raise ValueError("images must be a list, also for a single image; write [image]")
        opened = [image for image in images if isinstance(image, Image.Image)]
        paths = [Path(image) for image in images if not isinstance(image, Image.Image)]
        if opened and paths:
            raise ValueError("images must be all file names or all Pillow images; open the files first")
        if opened:
            crops = [crop_square(upright(image), self.size, resize=self.resize) for image in opened]
            return np.stack([np.broadcast_to(crop, (self.size, self.size, 3)) for crop in crops])
        pixels, reasons = read_images(paths, size=self.size, resize=self.resize)
        problems = [
            f"{path}: {reason}" for path, reason in zip(paths, reasons, strict=True) if reason is not None
        ]
        if problems:
            raise unreadable_error("images", problems, len(paths))
        return pixels

    def _with_channels(self, images: UInt8[np.ndarray, "n s s _"]) -> UInt8[np.ndarray, "n s s c"]:
        if images.shape[-1] == self.channels:
            return images
        if self.channels == 3:
            return np.repeat(images, 3, axis=-1)
        return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[..., None]


@dataclass(frozen=True, kw_only=True)
class TextPreprocessing:
    """Text as ids of its UTF-8 bytes.

    Attributes:
      first_id: the id of byte 0; byte b has the id first_id + b.
      start_id: the id in front of every text, or None.
      end: what is put after every text.
      pad_id: the id that fills up a row of ids, or None if there is none.
      length: how many ids a row has, or None: then all texts must need the same number.
    """

    first_id: int = 0
    start_id: int | None = None
    end: str = ""
    pad_id: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        require_integer("first_id", self.first_id, minimum=0)
        for name in ("start_id", "pad_id"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), minimum=0)
        if self.length is not None:
            require_integer("length", self.length, minimum=1)
        if not isinstance(self.end, str):
            raise ValueError(f"end must be a text; got end={self.end!r}")

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n l"]:
        """The ids of the texts.

        Raises:
          ValueError: a text needs more ids than `length`, or fewer although there is no `pad_id`.
        """
        if isinstance(texts, str):
            raise ValueError("texts must be a list, also for a single text; write [text]")
        start = [] if self.start_id is None else [self.start_id]
        rows = [[*start, *(byte + self.first_id for byte in (text + self.end).encode())] for text in texts]
        length = max(map(len, rows), default=0) if self.length is None else self.length
        for text, row in zip(texts, rows, strict=True):
            if len(row) > length:
                raise ValueError(
                    f"text needs {len(row)} ids but length={length}; shorten it or raise length: {text!r}"
                )
            if len(row) < length and self.pad_id is None:
                raise ValueError(
                    f"every text must need {length} ids, as there is no pad_id; got {len(row)} for {text!r}"
                )
        ids = np.full((len(rows), length), 0 if self.pad_id is None else self.pad_id, np.int32)
        for filled, row in zip(ids, rows, strict=True):
            filled[: len(row)] = row
        return ids

    def decode(self, ids: Int[Any, " l"]) -> str:
        """The text of one row, up to `end`; bytes that are no UTF-8 become the replacement character."""
        marks = {self.start_id, self.pad_id}
        numbers = [int(number) for number in np.asarray(ids) if int(number) not in marks]
        values = [number - self.first_id for number in numbers]
        text = bytes(value for value in values if 0 <= value < 256).decode(errors="replace")
        return text.partition(self.end)[0] if self.end else text


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a trained model needs besides its weights.

    Attributes:
      images: makes the model's input of images; None if it takes none.
      text: makes the model's input of texts; None if it takes none.
      class_names: the names of the classes in the order of the logits; empty if there are none.
    """

    images: ImagePreprocessing | None = None
    text: TextPreprocessing | None = None
    class_names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of preprocessing.json; the inverse of `from_json`."""
        return {**asdict(self), "class_names": list(self.class_names)}

    @classmethod
    def from_json(cls, description: Any) -> "Preprocessing":
        """The inverse of `to_json`; ValueError names the entry that is wrong."""
        given = _arguments(cls, description, "the file")
        names = given.pop("class_names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"class_names must be a list of names; got {names!r:.80}")
        parts: dict[str, Any] = {}
        for name, kind in (("images", ImagePreprocessing), ("text", TextPreprocessing)):
            if given.get(name) is not None:
                try:
                    parts[name] = kind(**_arguments(kind, given[name], name))
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{name}: {error}") from error
        return cls(**parts, class_names=tuple(names))


def _arguments(kind: type[Any], given: Any, what: str) -> dict[str, Any]:
    """The entries of a JSON object, all of them fields of `kind`."""
    known = {field.name for field in fields(kind)}
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} must hold an object with {', '.join(sorted(known))}; got {given!r:.80}")
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"unknown: {', '.join(unknown)}; there may be {', '.join(sorted(known))}")
    return dict(given)
