"""The addresses as training, validation and test text."""

import pytest

from jaxmodels.data import state_of_the_union
from jaxmodels.data.embedded.union_splits import union_splits


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
