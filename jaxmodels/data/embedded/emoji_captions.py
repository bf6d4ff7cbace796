"""The embedded emoji as a captioning and retrieval problem: what is it called, and which one is called that?"""

import numpy as np
from jaxtyping import Bool

from jaxmodels.data.datasets import CaptionedImages, CaptionedSplits
from jaxmodels.data.embedded.emoji import EmojiSet, Style, emoji
from jaxmodels.data.embedded.emoji_splits import SIDE, box_means, require_size, without_validation


def emoji_captions(*, size: int, holdout: Style = "fluent", skin_tones: bool = False) -> CaptionedSplits:
    """Pictures with their names, trained on in two drawing styles and tested on in the third.

    Is a thing recognised in a hand that was never seen? The test shows every emoji that all three styles draw:
    nine tenths of them were trained on in the other two, one tenth was not. That tenth, the concepts with
    `crc32(concept) % 10 == 1`, makes up the validation data, drawn in the two styles of training.

    Args:
        size: side of the pictures in pixels; those below 64 are box means of the 64-pixel ones.
        holdout: the style to test on.
        skin_tones: whether the skin-tone variants take part. They are half of the pictures, but the same 300
            drawings in five colours: with them retrieval is mostly about colours of one gesture, and much of
            every caption is "medium-dark skin tone", which needs no picture to be continued. Without them
            the test has 1,594 pictures, each of another thing.

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


def _captioned(pictures: EmojiSet, chosen: Bool[np.ndarray, " n"], size: int) -> CaptionedImages:
    return CaptionedImages(
        images=box_means(pictures.images[chosen], SIDE // size),
        captions=tuple(caption for caption, keep in zip(pictures.captions, chosen, strict=True) if keep),
    )
