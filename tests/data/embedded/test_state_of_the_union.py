"""The embedded addresses: content, chronological split, and errors."""

import hashlib
from pathlib import Path

import pytest

from jaxmodels.data import state_of_the_union
from jaxmodels.data.embedded import packed
from jaxmodels.data.embedded.state_of_the_union import _addresses, union_splits


FILE = "state_of_the_union.tsv.xz"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An empty folder in place of the package's data."""
    monkeypatch.setattr(packed, "FILES", tmp_path)
    _addresses.cache_clear()
    yield tmp_path
    _addresses.cache_clear()


def test_content():
    corpus = state_of_the_union()

    assert len(corpus.text) == 10_761_622
    assert hashlib.sha256(corpus.text).hexdigest() == (
        "e6068ad3a6efdd1f5435b42ac4068a736e68955b3164206a38b56a481e9c17ca"
    )
    assert len(set(corpus.text)) == 102
    assert corpus.text.decode("utf-8")
    assert len(corpus.years) == len(corpus.presidents) == len(corpus.addresses) == 233
    assert list(corpus.years) == sorted(corpus.years)
    assert set(range(1790, 2022)) - set(corpus.years) == {1933}
    assert corpus.addresses[0].startswith(
        b"Fellow-Citizens of the Senate and House of Representatives: In meeting you"
    )


def test_two_addresses_of_a_year_are_in_the_order_of_office():
    corpus = state_of_the_union()
    twice = [
        (y, p) for y, p in zip(corpus.years, corpus.presidents, strict=True) if corpus.years.count(y) > 1
    ]

    assert twice == [
        (1953, "Harry S Truman"),
        (1953, "Dwight D Eisenhower"),
        (1961, "Dwight D Eisenhower"),
        (1961, "John F Kennedy"),
    ]


@pytest.mark.parametrize(
    ("split", "years", "addresses", "size"),
    [
        ("train", (1790, 2000), 212, 10_039_636),
        ("validation", (2001, 2010), 10, 312_809),
        ("test", (2011, 2021), 11, 409_173),
    ],
)
def test_split(split, years, addresses, size):
    corpus = state_of_the_union(split)

    assert (corpus.years[0], corpus.years[-1]) == years
    assert len(corpus.years) == len(corpus.presidents) == len(corpus.addresses) == addresses
    assert len(corpus.text) == size


def test_splits_are_consecutive_and_complete():
    splits = [state_of_the_union(split) for split in ("train", "validation", "test")]

    assert b"\n\n".join(corpus.text for corpus in splits) == state_of_the_union().text


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("split", ["dev", "Train", ""])
def test_unknown_split_is_named(split):
    with pytest.raises(
        ValueError, match=rf"split must be one of \('train', 'validation', 'test'\).*got split='{split}'"
    ):
        state_of_the_union(split)


def test_missing_file_is_named(files):
    with pytest.raises(FileNotFoundError, match=rf"{FILE}.*install the package again.*build_data"):
        state_of_the_union()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b""])
def test_damaged_file_is_named(files, damage):
    content = (Path(packed.__file__).with_name("files") / FILE).read_bytes()
    (files / FILE).write_bytes(damage(content))

    with pytest.raises(ValueError, match=rf"whole xz file.*{FILE}.*install the package again"):
        state_of_the_union("test")


def test_another_table_is_noticed(files):
    content = (Path(packed.__file__).with_name("files") / "emoji.tsv.xz").read_bytes()
    (files / FILE).write_bytes(content)

    with pytest.raises(
        ValueError, match=r"every line must be a year, a president and a text; got line=b'1F600"
    ):
        state_of_the_union()


def test_splits_are_those_of_the_corpus() -> None:
    splits = union_splits()
    assert splits.train == state_of_the_union("train").text
    assert splits.validation == state_of_the_union("validation").text
    assert splits.test == state_of_the_union("test").text
    assert splits.row is None
    assert splits.source == "State of the Union, trained on 1790-2000, tested on 2011-2021"


def test_old_addresses_can_be_left_out() -> None:
    whole, recent = union_splits(), union_splits(first_year=1945)
    corpus = state_of_the_union("train")
    first = corpus.addresses[corpus.years.index(1945)]
    assert recent.train == whole.train[whole.train.index(first) :]
    assert len(recent.train) == 2_172_135
    assert recent.test == whole.test


@pytest.mark.parametrize("year", [1789, 2001])
def test_wrong_year(year) -> None:
    with pytest.raises(ValueError, match=f"first_year must be from 1790 to 2000; got first_year={year}"):
        union_splits(first_year=year)
