"""The embedded emoji as data sets: classes are Unicode's groups, captions its names."""

import zlib
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool

from jaxmodels.data.datasets import CaptionedImages, CaptionedSplits, LabelledImages, LabelledSplits
from jaxmodels.data.downsampling import box_means
from jaxmodels.data.embedded.emoji import GROUPS, STYLES, EmojiSet, Style, emoji


T = TypeVar("T")
Protocol = Literal["across-styles", "within-style"]

EMBEDDED_SIDE = 64  # of the embedded images, in pixels


def emoji_splits(protocol: Protocol, *, size: int) -> LabelledSplits:
    """Images of the nine groups, split into training, validation and test data.

    * "across-styles": train on OpenMoji and Noto, test on Fluent, over the emoji that all three draw. Most
      concepts of the test are trained on, but in other drawing styles.
    * "within-style": train and test on all three styles, with different concepts.

    The concepts with `crc32(concept) % 10 == 1` are taken out of the training data and become validation data.

    Skin-tone variants are left out. With them the group people-body would be 60 to 65 % of every split, and five
    sixths of that would be the same drawings in other colours. Without them the largest group has 22 % of the test
    images.

    Args:
        size: side of the images in pixels; those below 64 are box means of the 64-pixel ones.

    Raises:
        ValueError: an unknown protocol, or a size that is not 64, 32 or 16.
    """
    if protocol not in ("across-styles", "within-style"):
        raise ValueError(f"protocol must be 'across-styles' or 'within-style'; got protocol={protocol!r}")
    require_size(size)
    holdout = "fluent" if protocol == "across-styles" else None
    return LabelledSplits(
        source=f"emoji, {protocol.replace('-', ' ')}",
        class_names=GROUPS,
        **_splits(_labelled, size=size, holdout=holdout, skin_tones=False),
    )


def emoji_captions(*, size: int, holdout: Style = "fluent", skin_tones: bool = False) -> CaptionedSplits:
    """Images with their names, trained on in two drawing styles and tested on in the third.

    The test has every emoji that all three styles draw. Training sees nine tenths of these concepts, in the two other
    styles. The last tenth, the concepts with `crc32(concept) % 10 == 1`, is the validation data, in the styles of
    training.

    Args:
        size: side of the images in pixels; those below 64 are box means of the 64-pixel ones.
        holdout: the style to test on.
        skin_tones: whether the skin-tone variants take part. They are half of the images, but only 300 drawings in
            five colours. With them, retrieval is mostly about the colour of a gesture, and much of a caption is
            "medium-dark skin tone", which can be continued without an image. Without them the test has 1,594 images
            of different things.

    Raises:
        ValueError: a size that is not 64, 32 or 16, or an unknown style.
    """
    require_size(size)
    splits = _splits(_captioned, size=size, holdout=holdout, skin_tones=skin_tones)
    trained_on = " and ".join(sorted(style for style in STYLES if style != holdout))
    return CaptionedSplits(source=f"emoji, trained on {trained_on}, tested on {holdout}", **splits)


def _splits(
    make: Callable[[EmojiSet, Bool[np.ndarray, " n"], int], T],
    *,
    size: int,
    holdout: Style | None,
    skin_tones: bool,
) -> dict[Literal["train", "validation", "test"], T]:
    """`make` of the emoji of every split, of those that are chosen, and of the size."""
    train = emoji(split="train", holdout=holdout, skin_tones=skin_tones)
    test = emoji(split="test", holdout=holdout, skin_tones=skin_tones)
    kept, held_out = without_validation(train)
    return {
        "train": make(train, kept, size),
        "validation": make(train, held_out, size),
        "test": make(test, np.ones(len(test), bool), size),
    }


def without_validation(train: EmojiSet) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which training images are kept, and which become validation data: `crc32(concept) % 10 == 1`."""
    held_out = np.array([zlib.crc32(concept.encode()) % 10 == 1 for concept in train.concepts])
    # Some concepts are drawn alike to the last pixel; what equals a validation image would leak it.
    seen = {image.tobytes() for image in train.images[held_out]}
    return ~held_out & np.array([image.tobytes() not in seen for image in train.images]), held_out


def require_size(size: int) -> None:
    """ValueError unless images of that side can be made by box means."""
    if size not in (64, 32, 16):
        raise ValueError(f"size must be 64, 32 or 16 pixels; got size={size!r}")


def _labelled(emoji_set: EmojiSet, chosen: np.ndarray, size: int) -> LabelledImages:
    return LabelledImages(
        images=box_means(emoji_set.images[chosen], EMBEDDED_SIDE // size), labels=emoji_set.labels[chosen]
    )


def _captioned(emoji_set: EmojiSet, chosen: Bool[np.ndarray, " n"], size: int) -> CaptionedImages:
    return CaptionedImages(
        images=box_means(emoji_set.images[chosen], EMBEDDED_SIDE // size),
        captions=tuple(caption for caption, keep in zip(emoji_set.captions, chosen, strict=True) if keep),
    )
