"""A checksum of everything that is read, and of nothing else."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jaxmodels.data import CaptionedImages, CaptionedSplits, LabelledImages, LabelledSplits, TextSplits
from jaxmodels.training.tasks.checksum import data_checksum


TEXT = TextSplits(source="a", train=b"one two", validation=b"three", test=b"four")


def images(shade: int) -> np.ndarray:
    return np.full((4, 2, 2, 3), shade, np.uint8)


def labelled(shade: int, *labels: int) -> LabelledImages:
    return LabelledImages(images=images(shade), labels=np.array(labels, np.int32))


def captioned(shade: int, *captions: str) -> CaptionedImages:
    return CaptionedImages(images=images(shade), captions=captions)


LABELLED = LabelledSplits(
    source="a",
    train=labelled(1, 0, 1, 0, 1),
    validation=labelled(2, 0, 1, 0, 1),
    test=labelled(3, 0, 1, 0, 1),
    class_names=("x", "y"),
)
CAPTIONED = CaptionedSplits(
    source="a",
    train=captioned(1, "a", "b", "c", "d"),
    validation=captioned(2, "a", "b", "c", "d"),
    test=captioned(3, "a", "b", "c", "d"),
)


@pytest.mark.parametrize("splits", [TEXT, LABELLED, CAPTIONED])
def test_the_path_does_not_count(splits: Any) -> None:
    assert data_checksum(splits) == data_checksum(replace(splits, source="elsewhere"))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_split_counts(split: str) -> None:
    before = getattr(TEXT, split)
    changed = [
        (TEXT, before[:-1] + b"!"),
        (LABELLED, labelled(9, 0, 1, 0, 1)),
        (LABELLED, replace(getattr(LABELLED, split), labels=np.array([1, 0, 1, 0], np.int32))),
        (CAPTIONED, captioned(9, "a", "b", "c", "d")),
        (CAPTIONED, replace(getattr(CAPTIONED, split), captions=("ab", "", "c", "d"))),
    ]
    for splits, other in changed:
        assert data_checksum(replace(splits, **{split: other})) != data_checksum(splits)


def test_nothing_moves_from_one_split_to_the_next() -> None:
    other = replace(TEXT, train=b"one twoth", validation=b"ree")
    assert data_checksum(other) != data_checksum(TEXT)
    assert data_checksum(replace(LABELLED, class_names=("y", "x"))) != data_checksum(LABELLED)
    assert data_checksum(replace(TEXT, row=1)) != data_checksum(TEXT)


def test_class_names_that_are_no_text() -> None:
    data_checksum(replace(LABELLED, class_names=("\udcff", "y")))
