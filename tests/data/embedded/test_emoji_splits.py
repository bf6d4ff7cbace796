"""The embedded emoji as a classification problem."""

import zlib

import numpy as np
import pytest

from jaxmodels.data import emoji, emoji_splits


def keys(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.fixture(scope="module", params=["across-styles", "within-style"])
def protocol(request):
    return request.param


@pytest.fixture(scope="module")
def splits(protocol):
    return emoji_splits(protocol, size=64)


def concepts_of(protocol: str, split: str) -> dict[bytes, set[str]]:
    """The concept of each image in one of the splits."""
    found: dict[bytes, set[str]] = {}
    emoji_set = emoji(
        split=split, holdout="fluent" if protocol == "across-styles" else None, skin_tones=False
    )
    for key, concept in zip(keys(emoji_set.images), emoji_set.concepts, strict=True):
        found.setdefault(key, set()).add(concept)
    return found


def test_counts(protocol, splits):
    counts = [len(part) for part in (splits.train, splits.validation, splits.test)]

    assert counts == {"across-styles": [2859, 322, 1594], "within-style": [4124, 519, 496]}[protocol]
    assert len(splits.class_names) == 9
    assert splits.source == f"emoji, {protocol.replace('-', ' ')}"


def test_no_group_is_most_of_the_test_images(splits):
    assert np.bincount(splits.test.labels).max() / len(splits.test) < 0.25


def test_validation_concepts_are_not_trained_on(protocol, splits):
    concepts = concepts_of(protocol, "train")

    def is_held_out(key: bytes) -> bool:
        return any(zlib.crc32(concept.encode()) % 10 == 1 for concept in concepts[key])

    assert all(map(is_held_out, keys(splits.validation.images)))
    assert not any(map(is_held_out, keys(splits.train.images)))


def test_no_image_is_on_two_sides(splits):
    train, validation, test = (
        set(keys(part.images)) for part in (splits.train, splits.validation, splits.test)
    )
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_labels_belong_to_their_images(protocol, splits):
    emoji_set = emoji(
        split="train", holdout="fluent" if protocol == "across-styles" else None, skin_tones=False
    )
    groups: dict[bytes, set[int]] = {}
    for key, label in zip(keys(emoji_set.images), emoji_set.labels, strict=True):
        groups.setdefault(key, set()).add(int(label))
    for key, label in zip(keys(splits.train.images), splits.train.labels, strict=True):
        assert label in groups[key]


@pytest.mark.parametrize("size", [32, 16])
def test_smaller_images_are_box_means(size):
    large, small = emoji_splits("across-styles", size=64), emoji_splits("across-styles", size=size)
    box = 64 // size

    assert small.train.images.shape == (len(large.train), size, size, 3)
    assert small.train.images.dtype == np.uint8
    means = large.train.images[:20].reshape(20, size, box, size, box, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(small.train.images[:20], np.rint(means))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"protocol": "styles", "size": 32},
            r"protocol must be 'across-styles' or 'within-style'; got protocol='styles'",
        ),
        ({"protocol": "within-style", "size": 48}, r"size must be 64, 32 or 16 pixels; got size=48"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        emoji_splits(**arguments)
