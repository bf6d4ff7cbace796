"""Baselines of the byte tasks: compressors, and counts of which byte follows which.

All results are bits per byte.
"""

import gzip
import lzma
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


XZ_DICTIONARY = 64 * 2**20  # bytes that `xz -9` looks back; it needs ten times as much memory
XZ_SMALLEST_DICTIONARY = 4096


def entropy_bits(data: bytes) -> float:
    """Entropy of the frequencies of the bytes: no code that gives each byte its own word is shorter."""
    counts = np.unique(np.frombuffer(data, np.uint8), return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def gzip_bits(data: bytes) -> float:
    """`gzip -9`."""
    return 8 * len(gzip.compress(data, 9)) / len(data)


def xz_bits(data: bytes, *, after: bytes = b"") -> float:
    """`xz -9e`: what `data` adds to the compressed size of the text before it, as far back as xz can look."""
    after = after[-XZ_DICTIONARY:]
    return 8 * (_xz_size(after + data) - (_xz_size(after) if after else 0)) / len(data)


def _xz_size(data: bytes) -> int:
    # A dictionary larger than the data would change nothing but the memory that is needed.
    dictionary = min(max(len(data), XZ_SMALLEST_DICTIONARY), XZ_DICTIONARY)
    preset = 9 | lzma.PRESET_EXTREME
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary}]
    return len(lzma.compress(data, filters=filters))


class ByteCounts:
    """The next byte given the `order` bytes before it, from counts.

    Contexts of all lengths up to `order` are mixed by the rule of Witten and Bell: the more often a context
    was seen, and the fewer different bytes followed it, the more it is trusted. Texts begin in a context of
    their own.
    """

    def __init__(self, order: int, texts: Sequence[bytes]) -> None:
        self.order = order
        self.followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            for context, byte in self._bytes_in_context(text):
                for length in range(order + 1):
                    self.followers[context[order - length :]][byte] += 1

    def bits(self, texts: Sequence[bytes]) -> float:
        """Bits per byte of other texts."""
        total = sum(
            -math.log2(self._probability(context, byte))
            for text in texts
            for context, byte in self._bytes_in_context(text)
        )
        return total / sum(map(len, texts))

    def _bytes_in_context(self, text: bytes) -> list[tuple[tuple[int, ...], int]]:
        padded = (-1,) * self.order + tuple(text)
        return [(padded[i : i + self.order], byte) for i, byte in enumerate(text)]

    def _probability(self, context: tuple[int, ...], byte: int) -> float:
        probability = 1 / 256
        for length in range(self.order + 1):
            followers = self.followers.get(context[self.order - length :])
            if followers is None:  # then no longer one was seen either
                break
            different = len(followers)
            probability = (followers[byte] + different * probability) / (followers.total() + different)
        return probability
