"""The State of the Union addresses as a language-modelling problem."""

from jaxmodels.data.datasets import TextSplits
from jaxmodels.data.embedded.state_of_the_union import SEPARATOR, SPLITS, state_of_the_union


def union_splits(*, first_year: int = 1790) -> TextSplits:
    """Training data up to 2000, validation data from 2001 to 2010, test data from 2011 to 2021.

    Args:
        first_year: addresses before it are left out. Language drifts: to a model that has no time to read all
            of them, the recent ones say more about the next.

    Raises:
        ValueError: `first_year` is not a year of the training data.
    """
    first, last = SPLITS["train"]
    if not first <= first_year <= last:
        raise ValueError(f"first_year must be from {first} to {last}; got first_year={first_year!r}")
    train = state_of_the_union("train")
    chosen = [text for year, text in zip(train.years, train.addresses, strict=True) if year >= first_year]
    return TextSplits(
        source=f"State of the Union, trained on {first_year}-{last}, tested on 2011-2021",
        train=SEPARATOR.join(chosen),
        validation=state_of_the_union("validation").text,
        test=state_of_the_union("test").text,
    )
