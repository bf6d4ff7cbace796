"""What training reads, wherever it came from: training, validation and test data of one kind."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImages:
    """Images of one size with their classes."""

    images: UInt8[np.ndarray, "n height width c"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledSplits:
    """Training data, what is looked at meanwhile, and what is looked at once."""

    source: str  # what this is, in a few words: "emoji, across styles" or a path
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]  # one name if the images have no classes
    skipped: tuple[str, ...] = ()  # what was left out, and why


@dataclass(frozen=True, eq=False, kw_only=True)
class CaptionedImages:
    """Images of one size with a caption each."""

    images: UInt8[np.ndarray, "n height width c"]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False, kw_only=True)
class CaptionedSplits:
    source: str
    train: CaptionedImages
    validation: CaptionedImages
    test: CaptionedImages
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class TextSplits:
    """Bytes in their order; the future is held out."""

    source: str
    train: bytes
    validation: bytes
    test: bytes
    row: int | None = None  # bytes of one record, where the data has fixed ones, such as images
    skipped: tuple[str, ...] = ()
