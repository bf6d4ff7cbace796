"""The embedded emoji as a classification problem: which of Unicode's groups does an image belong to?"""

import zlib
from typing import Literal

import numpy as np
from jaxtyping import Bool

from jaxmodels.data.datasets import CaptionedImages, CaptionedSplits, LabelledImages, LabelledSplits
from jaxmodels.data.downsampling import box_means
from jaxmodels.data.embedded.emoji import EmojiSet, Style, emoji


Protocol = Literal["across-styles", "within-style"]

SIDE = 64  # of the embedded images, in pixels


def emoji_splits(protocol: Protocol, *, size: int) -> LabelledSplits:
    """Images of the nine groups, split into training, validation and test data.

    * "across-styles": train on OpenMoji and Noto, test on Fluent, over the emoji that all three draw. The
      test shows most concepts that were trained on, in a hand that was never seen.
    * "within-style": train and test on all three styles, with different concepts.

    Validation data are concepts (`crc32(concept) % 10 == 1`) taken out of the training data.

    Skin-tone variants are left out. With them people-body would be 60 to 65 % of every split, five sixths of
    it the same drawings in other colours, and guessing people-body would score 0.60 and more; without them the
    largest group has 22 % of the test images.

    Args:
        size: side of the images in pixels; those below 64 are box means of the 64-pixel ones.

    Raises:
        ValueError: an unknown protocol, or a size that is not 64, 32 or 16.
    """
    if protocol not in ("across-styles", "within-style"):
        raise ValueError(f"protocol must be 'across-styles' or 'within-style'; got protocol={protocol!r}")
    require_size(size)
    holdout = "fluent" if protocol == "across-styles" else None
    train = emoji(split="train", holdout=holdout, skin_tones=False)
    test = emoji(split="test", holdout=holdout, skin_tones=False)
    kept, held_out = without_validation(train)
    return LabelledSplits(
        source=f"emoji, {protocol.replace('-', ' ')}",
        train=_labelled(train, kept, size),
        validation=_labelled(train, held_out, size),
        test=_labelled(test, np.ones(len(test), bool), size),
        class_names=train.group_names,
    )


def emoji_captions(*, size: int, holdout: Style = "fluent", skin_tones: bool = False) -> CaptionedSplits:
    """Images with their names, trained on in two drawing styles and tested on in the third.

    Is a thing recognised in a hand that was never seen? The test shows every emoji that all three styles draw:
    nine tenths of them were trained on in the other two, one tenth was not. That tenth, the concepts with
    `crc32(concept) % 10 == 1`, makes up the validation data, drawn in the two styles of training.

    Args:
        size: side of the images in pixels; those below 64 are box means of the 64-pixel ones.
        holdout: the style to test on.
        skin_tones: whether the skin-tone variants take part. They are half of the images, but the same 300
            drawings in five colours: with them retrieval is mostly about colours of one gesture, and much of
            every caption is "medium-dark skin tone", which needs no image to be continued. Without them
            the test has 1,594 images, each of another thing.

    Raises:
        ValueError: a size that is not 64, 32 or 16, or an unknown style.
    """
    require_size(size)
    train = emoji(split="train", holdout=holdout, skin_tones=skin_tones)
    test = emoji(split="test", holdout=holdout, skin_tones=skin_tones)
    kept, held_out = without_validation(train)
    return CaptionedSplits(
        source=f"emoji, trained on {' and '.join(sorted(set(train.styles)))}, tested on {holdout}",
        train=_captioned(train, kept, size),
        validation=_captioned(train, held_out, size),
        test=_captioned(test, np.ones(len(test), bool), size),
    )


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
        images=box_means(emoji_set.images[chosen], SIDE // size), labels=emoji_set.labels[chosen]
    )


def _captioned(emoji_set: EmojiSet, chosen: Bool[np.ndarray, " n"], size: int) -> CaptionedImages:
    return CaptionedImages(
        images=box_means(emoji_set.images[chosen], SIDE // size),
        captions=tuple(caption for caption, keep in zip(emoji_set.captions, chosen, strict=True) if keep),
    )
