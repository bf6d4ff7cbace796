"""What becomes validation and test data where the user does not say so, and what every split must have.

Where the data has no test split, the training examples with crc32(key) % 10 == 0 become test data; where it has no
validation split, those with crc32(key) % 10 == 1 become validation data. The key is the path of an image, its checksum
in a table, or its number in an array, so that examples which are added later move none of the others.
"""

import zlib
from collections.abc import Collection, Mapping, Sized
from pathlib import Path
from typing import Literal, get_args


Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# How users call them.
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


def choose_split(key: str, given: Collection[Split]) -> Split:
    """The split of an example of the training data; `given` are those that the data brings."""
    remainder = zlib.crc32(key.encode("utf-8", "surrogateescape")) % 10
    if remainder == 0 and "test" not in given:
        return "test"
    if remainder == 1 and "validation" not in given:
        return "validation"
    return "train"


def require_examples(path: Path, examples: Mapping[Split, Sized], noun: str, way_out: str) -> None:
    """ValueError if there is nothing in one of the splits."""
    if not all(len(examples[split]) for split in SPLITS):
        counts = ", ".join(f"{split}={len(examples[split])}" for split in SPLITS)
        raise ValueError(
            f"there must be {noun} to train on, to validate and to test; got {counts} from path={str(path)!r}; "
            f"{way_out}"
        )
