"""Files, folders and images as bytes: order, splits, and every way in which they can be wrong."""

import os
from pathlib import Path

import numpy as np
import pytest

from jaxmodels.data import labelled_images, texts
from jaxmodels.data.readers.splitting import choose_split


BYTES = np.random.default_rng(0).integers(0, 256, 10_000, dtype=np.uint8).tobytes().replace(b"\n", b" ")


def write(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def naming_damage(splits):
    return splits.train + splits.validation + splits.test


@pytest.mark.parametrize("name", ["corpus", "corpus.txt", "corpus.bin"])
def test_any_bytes_are_cut_90_5_5(tmp_path, name):
    (tmp_path / name).write_bytes(BYTES)

    splits = texts(tmp_path / name)

    assert splits.source == str(tmp_path / name)
    assert splits.row is None
    assert splits.skipped == ()
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [9000, 500, 500]
    assert naming_damage(splits) == BYTES


def test_cuts_are_where_a_line_begins_shortly_before(tmp_path):
    content = bytearray(BYTES)
    content[8_950] = content[9_400] = ord("\n")  # 100 bytes, a hundredth of all, are near
    (tmp_path / "a.txt").write_bytes(content)

    splits = texts(tmp_path / "a.txt")

    assert [len(splits.train), len(splits.validation)] == [8_951, 9_400 + 1 - 8_951]
    assert naming_damage(splits) == bytes(content)


@pytest.mark.parametrize("place", [8_899, 9_000])
def test_line_breaks_further_away_do_not_count(tmp_path, place):
    content = bytearray(BYTES)
    content[place] = ord("\n")
    (tmp_path / "a.txt").write_bytes(content)

    assert len(texts(tmp_path / "a.txt").train) == 9_000


@pytest.mark.parametrize(("distance", "expected"), [(1_023, 1_799_000 - 22), (1_025, 1_800_000)])
def test_near_is_a_kilobyte_in_long_texts(tmp_path, distance, expected):
    content = bytearray(200 * BYTES)
    content[1_800_000 - distance] = ord("\n")
    (tmp_path / "a.txt").write_bytes(content)

    assert len(texts(tmp_path / "a.txt").train) == expected


def test_a_folder_is_read_in_the_order_of_paths(tmp_path):
    write(tmp_path, b_txt=b"b" * 100 + b"\n", a_md=b"a" * 100, z_png=b"z", _hidden=b"h", LICENSE=b"l")
    write(tmp_path / "c", b_rst=b"d" * 100, a_TXT=b"c" * 100)

    splits = texts(tmp_path)

    assert naming_damage(splits) == b"\n\n".join(letter * 100 for letter in (b"a", b"b", b"c", b"d"))
    assert splits.skipped == (
        "1 × file without suffix: not read as text, by name or suffix",
        "1 × *.png: not read as text, by name or suffix",
    )


@pytest.mark.parametrize("validation", ["validation_txt", "valid_md", "val_txt", "VALID_txt"])
def test_files_of_splits(tmp_path, validation):
    write(tmp_path, train_txt=b"a", test_txt=b"c", README_md=b"about", **{validation: b"b"})

    splits = texts(tmp_path)

    assert (splits.train, splits.validation, splits.test) == (b"a", b"b", b"c")
    assert splits.skipped == ("1 × *.md: not read as text, by name or suffix",)


def test_folders_of_splits(tmp_path):
    write(tmp_path / "train", b_txt=b"b", a_txt=b"a", c_pdf=b"c")
    write(tmp_path / "valid", a_txt=b"v")
    write(tmp_path, test_txt=b"t")

    splits = texts(tmp_path)

    assert (splits.train, splits.validation, splits.test) == (b"a\n\nb", b"v", b"t")
    assert splits.skipped == ("1 × *.pdf: not read as text, by name or suffix",)


@pytest.mark.parametrize(("given", "other"), [("test", "validation"), ("validation", "test")])
def test_a_missing_split_is_a_twentieth_of_the_training_text(tmp_path, given, other):
    write(tmp_path, train_txt=BYTES, **{f"{given}_txt": b"given"})

    splits = texts(tmp_path)

    assert getattr(splits, given) == b"given"
    assert (splits.train, getattr(splits, other)) == (BYTES[:9500], BYTES[9500:])


def test_only_train(tmp_path):
    write(tmp_path, train_txt=BYTES)

    assert [len(part) for part in (texts(tmp_path).train, texts(tmp_path).validation)] == [9000, 500]


@pytest.mark.parametrize("shape", [(3072,), (4, 4), (2, 2, 3)])
def test_images_are_records(tmp_path, shape):
    images = np.random.default_rng(1).integers(0, 256, (40, *shape), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", data=images, labels=np.arange(40))

    splits = texts(tmp_path / "a.npz")

    assert splits.row == np.prod(shape)
    for name in ("train", "validation", "test"):
        chosen = [number for number in range(40) if choose_split(str(number), ()) == name]
        assert getattr(splits, name) == images[chosen].tobytes()


def test_records_of_two_sizes(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((40, 4, 4), np.uint8), x_test=np.zeros((40, 4, 5), np.uint8))

    with pytest.raises(
        ValueError, match=r"same number of bytes; got \{.*'train': 16.*\} in path='.*a\.npz'; make them"
    ):
        texts(tmp_path / "a.npz")


def test_an_empty_file(tmp_path):
    write(tmp_path, a_txt=b"")

    with pytest.raises(
        ValueError,
        match=r"every file must hold text; got 1 of 1 in path='.*a\.txt' which are empty:\n  .*a\.txt\n",
    ):
        texts(tmp_path / "a.txt")


def test_empty_files_in_a_folder(tmp_path):
    write(tmp_path, a_txt=b"", b_txt=BYTES, c_txt=b"")

    with pytest.raises(
        ValueError,
        match=r"got 2 of 3 in path=.* which are empty:\n  .*a\.txt\n  .*c\.txt\nremove or fill them",
    ):
        texts(tmp_path)


@pytest.mark.parametrize("names", [{}, {"a_png": b"a", "b": b"b"}])
def test_a_folder_without_text(tmp_path, names):
    write(tmp_path, **names)

    with pytest.raises(
        ValueError,
        match=r"must hold text files \(\.txt, .*; got path=.* without any; .*whose suffix does not matter",
    ):
        texts(tmp_path)


@pytest.mark.parametrize("length", [1, 10])
def test_a_text_that_is_too_short(tmp_path, length):
    write(tmp_path, a_txt=b"a" * length)

    with pytest.raises(
        ValueError, match=r"must be bytes to train on.* test=\d+ from path='.*a\.txt'; give longer texts"
    ):
        texts(tmp_path / "a.txt")


def test_twenty_bytes_are_enough_for_three_splits(tmp_path):
    write(tmp_path, a_txt=b"a" * 20)

    splits = texts(tmp_path / "a.txt")

    assert [len(splits.train), len(splits.validation), len(splits.test)] == [18, 1, 1]


def test_two_files_for_a_split(tmp_path):
    write(tmp_path, train_txt=b"a", valid_txt=b"b", val_txt=b"c")

    with pytest.raises(
        ValueError, match=r"one file or folder for each split; got train\.txt, val\.txt, valid\.txt in path="
    ):
        texts(tmp_path)


@pytest.mark.parametrize("name", ["a.zip", "enwik8.GZ", "a.parquet"])
def test_a_packed_file(tmp_path, name):
    (tmp_path / name).write_bytes(BYTES)

    with pytest.raises(
        ValueError, match=rf"must be text; got path='.*{name}', which holds it packed; unpack it first"
    ):
        texts(tmp_path / name)


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"that exists; got path='.*nowhere\.txt'"):
        texts(tmp_path / "nowhere.txt")


def test_no_permission(tmp_path, monkeypatch):
    write(tmp_path, a_txt=BYTES)

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", refuse)

    with pytest.raises(
        PermissionError, match=r"path must be readable; got path='.*a\.txt' and not enough permission"
    ):
        texts(tmp_path)


def test_a_link_in_a_circle_is_not_followed(tmp_path):
    write(tmp_path, a_txt=BYTES)
    (tmp_path / "circle").symlink_to(tmp_path)

    assert naming_damage(texts(tmp_path)) == BYTES


def test_what_has_no_end_is_left_out(tmp_path):
    """Nobody writes into the FIFO, and /dev/zero never ends."""
    (tmp_path / "a.txt").write_text("abcdefgh" * 100)
    (tmp_path / "b.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "c.txt")
    (tmp_path / "d.md").symlink_to(tmp_path / "nowhere")

    splits = texts(tmp_path)

    assert splits.train + splits.validation + splits.test == b"abcdefgh" * 100
    assert splits.skipped == ("1 × *.md: not a regular file", "2 × *.txt: not a regular file")


@pytest.mark.parametrize("read", [texts, lambda path: labelled_images(path, size=4)])
def test_a_device_or_a_fifo(tmp_path, read):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(
        ValueError, match=r"a regular file or a folder; got path='.*a\.txt', which is a FIFO; write"
    ):
        read(tmp_path / "a.txt")
    with pytest.raises(
        ValueError, match="got path='/dev/zero', which is a device; write what it gives into a file"
    ):
        read("/dev/zero")
