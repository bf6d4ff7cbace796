"""Captions as byte ids: the vocabulary of the captioning task."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

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
