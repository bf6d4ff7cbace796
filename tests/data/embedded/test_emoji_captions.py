"""The embedded emoji with their names: no leak, and images of the size that was asked for."""

import zlib

import numpy as np
import pytest

from jaxmodels.data import emoji
from jaxmodels.data.embedded.emoji_splits import emoji_captions


@pytest.fixture(scope="module")
def splits():
    return emoji_captions(size=32)


def concept_of() -> dict[str, str]:
    emoji_set = emoji()
    return dict(zip(emoji_set.captions, emoji_set.concepts, strict=True))


def test_sizes(splits) -> None:
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2859, 322, 1594)
    for part in (splits.train, splits.validation, splits.test):
        assert part.images.shape == (len(part.captions), 32, 32, 3)
        assert part.images.dtype == np.uint8
    assert splits.source == "emoji, trained on noto and openmoji, tested on fluent"


def test_validation_is_made_of_other_concepts(splits) -> None:
    concepts = concept_of()
    train, validation = (
        {concepts[caption] for caption in part.captions} for part in (splits.train, splits.validation)
    )
    assert not train & validation
    assert {zlib.crc32(concept.encode()) % 10 for concept in validation} == {1}


def test_no_validation_image_is_trained_on() -> None:
    splits = emoji_captions(size=64)
    seen = {image.tobytes() for image in splits.train.images}
    assert not any(image.tobytes() in seen for image in splits.validation.images)


def test_test_is_the_style_that_was_held_out() -> None:
    splits = emoji_captions(size=64, holdout="noto")
    expected = emoji("noto", skin_tones=False)
    number = {caption: i for i, caption in enumerate(expected.captions)}
    for i in (0, 700, 1593):
        assert np.array_equal(splits.test.images[i], expected.images[number[splits.test.captions[i]]])


def test_small_images_are_means(splits) -> None:
    whole = emoji_captions(size=64).test.images[5].astype(float)
    means = whole.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(splits.test.images[5] - means).max() <= 0.5


def test_skin_tones_on_request(splits) -> None:
    assert not any("skin tone" in caption for caption in splits.train.captions)
    toned = emoji_captions(size=16, skin_tones=True)
    assert len(toned.test) == 3139
    assert sum("skin tone" in caption for caption in toned.test.captions) == 3139 - 1594


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 48}, "size must be 64, 32 or 16 pixels; got size=48"),
        ({"size": 32, "holdout": "apple"}, "holdout must be one of .*; got holdout='apple'"),
    ],
)
def test_wrong_arguments(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        emoji_captions(**arguments)
