"""Text as byte ids: the vocabulary of the captioning task."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


PAD_ID = 0
BOS_ID = 257
NUM_TOKENS = 258  # padding, 256 bytes (id = byte + 1), beginning of sequence


def encode(texts: Sequence[str], length: int) -> Int[np.ndarray, "b n"]:
    """UTF-8 bytes plus one after a beginning-of-sequence id, padded with 0 on the right.

    Raises:
      ValueError: `length` is below 1, or a text needs more ids than that.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1; got length={length}")
    ids = np.full((len(texts), length), PAD_ID, np.int32)
    for row, text in zip(ids, texts, strict=True):
        encoded = [BOS_ID, *(byte + 1 for byte in text.encode())]
        if len(encoded) > length:
            raise ValueError(
                f"text needs {len(encoded)} ids but length={length}; shorten it or raise length: {text!r}"
            )
        row[: len(encoded)] = encoded
    return ids


def decode(ids: Int[np.ndarray, " n"]) -> str:
    """The inverse of `encode` for one row; undecodable bytes become the replacement character."""
    return bytes(int(i) - 1 for i in ids if 0 < i < BOS_ID).decode(errors="replace")
