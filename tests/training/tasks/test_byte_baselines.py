"""Baselines of the byte tasks, on texts whose entropy or counts are known."""

import gzip
import lzma
import math

import numpy as np
import pytest

from jaxmodels.training.tasks.baselines import bytes as byte_baselines
from jaxmodels.training.tasks.baselines.bytes import ByteCounts, entropy_bits, gzip_bits, xz_bits


TEXT = b"the cat sat on the mat and the dog sat on the log; " * 40
RANDOM = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()


def test_entropy_of_frequencies() -> None:
    assert entropy_bits(b"abcd" * 5) == pytest.approx(2)
    assert entropy_bits(b"aaaab" * 5) == pytest.approx(-0.8 * math.log2(0.8) - 0.2 * math.log2(0.2))
    assert entropy_bits(b"aaa") == 0


def test_compressors_are_those_of_the_command_line() -> None:
    assert gzip_bits(TEXT) == 8 * len(gzip.compress(TEXT, 9)) / len(TEXT)
    command = len(lzma.compress(TEXT, preset=9 | lzma.PRESET_EXTREME))
    assert abs(xz_bits(TEXT) * len(TEXT) / 8 - command) <= 4  # a smaller dictionary may change the header


def test_xz_uses_the_text_before() -> None:
    assert xz_bits(RANDOM) > 8
    assert xz_bits(RANDOM, after=RANDOM) < 0.5


def test_xz_reads_no_more_than_it_can_look_back(monkeypatch) -> None:
    sizes = []
    monkeypatch.setattr(byte_baselines, "XZ_DICTIONARY", 5000)
    monkeypatch.setattr(byte_baselines, "_xz_size", lambda data: sizes.append(len(data)) or 0)
    xz_bits(RANDOM, after=RANDOM + TEXT * 10)
    assert sizes == [5000 + len(RANDOM), 5000]


def test_counts_of_bytes_by_hand() -> None:
    # After "a": twice "b", once "c"; 2 different. Without context: a 3, b 2, c 1 of 6; 3 different.
    counts = ByteCounts(1, [b"ab", b"ab", b"ac"])
    shares = {byte: (n + 3 / 256) / 9 for byte, n in {"a": 3, "b": 2, "c": 1}.items()}
    start = (3 + 1 * shares["a"]) / (3 + 1)
    after_a = (2 + 2 * shares["b"]) / (3 + 2)
    assert counts.bits([b"ab"]) == pytest.approx(-(math.log2(start) + math.log2(after_a)) / 2)
    # Nothing was seen after "c", so that only the frequencies help.
    assert counts.bits([b"aca"]) == pytest.approx(
        -(math.log2(start) + math.log2((1 + 2 * shares["c"]) / 5) + math.log2(shares["a"])) / 3
    )


@pytest.mark.parametrize("order", [0, 1, 3])
def test_probabilities_add_up(order) -> None:
    counts = ByteCounts(order, [TEXT[:300], TEXT[7:90]])
    for context in [b"the", b"xyz", b"t s"]:
        padded = (-1,) * order + tuple(context)
        after = padded[len(padded) - order :]
        assert math.fsum(counts._probability(after, byte) for byte in range(256)) == pytest.approx(1)


def test_longer_contexts_help_on_what_was_seen() -> None:
    bits = [ByteCounts(order, [TEXT]).bits([TEXT[:500]]) for order in (0, 1, 2, 4)]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < 0.6 < 3 < bits[0]
