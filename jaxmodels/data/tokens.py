"""Captions as byte ids: the vocabulary of the captioning task."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int, UInt16

from jaxmodels.data.preprocessing import TextPreprocessing


PAD_ID = 0
BOS_ID = 257
NUM_TOKENS = 258  # padding, 256 bytes (id = byte + 1), beginning of sequence

_CAPTIONS = TextPreprocessing(first_id=1, start_id=BOS_ID, pad_id=PAD_ID)


def encode(texts: Sequence[str], length: int) -> Int[np.ndarray, "b n"]:
    """UTF-8 bytes plus one after a beginning-of-sequence id, padded with 0 on the right.

    Raises:
        ValueError: `length` is below 1, or a text needs more ids than that.
    """
    return replace(_CAPTIONS, length=length)(texts)


def decode(ids: Int[np.ndarray, " n"]) -> str:
    """The inverse of `encode` for one row; undecodable bytes become the replacement character."""
    return _CAPTIONS.decode(ids)


class EncodedTexts:
    """Many texts, held as bytes, from which the ids of any of them are looked up at once."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode() for text in texts]
        self.bytes = np.frombuffer(b"".join(encoded) + b"\0", np.uint8)  # so that there is one to look up
        self.lengths = np.array([len(text) for text in encoded])
        self.starts = np.cumsum(self.lengths) - self.lengths

    def rows(self, numbers: Int[np.ndarray, " b"], length: int) -> UInt16[np.ndarray, "b {length}"]:
        """What `encode` makes of the texts of these numbers, which must have room in `length` ids."""
        places = np.arange(length - 1)
        inside = places < self.lengths[numbers, None]
        found = self.bytes[np.where(inside, self.starts[numbers, None] + places, 0)]
        ids = np.full((len(numbers), length), BOS_ID, np.uint16)
        ids[:, 1:] = np.where(inside, found.astype(np.uint16) + 1, PAD_ID)
        return ids
