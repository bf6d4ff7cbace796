"""The rule by which examples are held out; it must never change, or a resumed run would train on test data."""

from pathlib import Path

import pytest

from jaxmodels.data.readers.splitting import choose_split, require_examples


def numbers(split, given=()):
    return [number for number in range(50) if choose_split(str(number), given) == split]


def test_golden_numbers():
    assert numbers("test") == [6, 29, 37, 40, 48]
    assert numbers("validation") == [3, 8, 10, 19, 27, 38, 39, 45]
    assert choose_split("cat/1.png", ()) == "train"


def test_what_the_data_brings_is_not_taken_from_the_training_data():
    assert numbers("test", {"train", "test"}) == []
    assert numbers("validation", {"train", "test"}) == numbers("validation")
    assert numbers("validation", {"train", "validation"}) == []
    assert numbers("test", {"train", "validation"}) == numbers("test")


def test_names_that_are_no_unicode_can_be_hashed():
    assert choose_split(b"\xff.png".decode("utf-8", "surrogateescape"), ()) in ("train", "validation", "test")


def test_about_a_tenth():
    keys = [f"cat/{number:05}.jpg" for number in range(10_000)]
    splits = [choose_split(key, ()) for key in keys]

    assert 900 < splits.count("test") < 1100
    assert 900 < splits.count("validation") < 1100


def test_an_empty_split_is_named():
    examples = {"train": "abc", "validation": "", "test": "a"}

    with pytest.raises(
        ValueError,
        match=r"must be letters to train on.*got train=3, validation=0, test=1 from path='a/b'; add some",
    ):
        require_examples(Path("a/b"), examples, "letters", "add some")
