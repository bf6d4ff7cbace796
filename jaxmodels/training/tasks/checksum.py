"""A checksum of the content of the data: a continued run must read what it began with, wherever that lies."""

import hashlib
from collections.abc import Sequence

import numpy as np

from jaxmodels.data.datasets import CaptionedSplits, LabelledSplits, TextSplits


def data_checksum(splits: LabelledSplits | CaptionedSplits | TextSplits) -> str:
    """Of all that training, validation and testing read: 16 bytes as hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=16)
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        for piece in [part] if isinstance(part, bytes) else vars(part).values():
            _add(hashed, piece)
    if isinstance(splits, LabelledSplits):
        _add(hashed, splits.class_names)
    if isinstance(splits, TextSplits):
        _add(hashed, str(splits.row).encode())
    return hashed.hexdigest()


def _add(hashed: "hashlib.blake2b", piece: np.ndarray | bytes | Sequence[str]) -> None:
    """Pieces are told apart by their lengths, so that nothing can move from one to the next unnoticed."""
    if isinstance(piece, np.ndarray):
        hashed.update(f"{piece.dtype}{piece.shape}".encode())
        hashed.update(np.ascontiguousarray(piece).data)
    elif isinstance(piece, bytes):
        hashed.update(f"bytes {len(piece)}".encode())
        hashed.update(piece)
    else:
        hashed.update(f"texts {len(piece)}".encode())
        for text in piece:
            _add(hashed, text.encode("utf-8", "surrogatepass"))
