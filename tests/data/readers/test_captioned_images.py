"""Images with captions from JSONL, CSV and Parquet, and every way in which they can be wrong."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmodels.data import captioned_images
from jaxmodels.data.readers.splitting import choose_split
from tests.data.readers.caption_lists import ROWS, comma_separated, jsonl, pairs, parquet, read


@pytest.mark.parametrize("write", [jsonl, comma_separated, parquet])
def test_formats(folder, write):
    rows = [*ROWS, {"image": "./images//3.png", "caption": 'a "quoted", 2nd\ncaption'}]

    splits = read(write(folder, rows), longest=30)

    assert splits.source == str(next(folder.glob("captions.*")))
    assert splits.skipped == ()
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        numbers = [number for number in range(60) if choose_split(f"images/{number}.png", ()) == name]
        expected = [(number, f"ünber {number}") for number in numbers]
        if 3 in numbers:
            expected.append((3, 'a "quoted", 2nd\ncaption'))
        assert pairs(part) == expected
        assert part.images.shape == (len(expected), 4, 4, 3)
        assert part.images.dtype == np.uint8


@pytest.mark.parametrize("write", [jsonl, comma_separated, parquet])
@pytest.mark.parametrize("validation", ["validation", "val", "VALID"])
def test_a_column_of_splits(folder, write, validation):
    names = ["train", validation, "test"]
    rows = [{**row, "split": names[index % 3], "id": index} for index, row in enumerate(ROWS)]

    splits = read(write(folder, rows))

    for remainder, part in enumerate((splits.train, splits.validation, splits.test)):
        assert pairs(part) == [(number, f"ünber {number}") for number in range(remainder, 60, 3)]


def test_a_split_that_no_line_has_is_a_tenth_of_the_training_data(folder):
    rows = [{**row, "split": "test" if index < 5 else "train"} for index, row in enumerate(ROWS)]

    splits = read(jsonl(folder, rows))

    assert [number for number, _ in pairs(splits.test)] == [0, 1, 2, 3, 4]
    assert [number for number, _ in pairs(splits.validation)] == [
        number
        for number in range(5, 60)
        if choose_split(f"images/{number}.png", {"train", "test"}) == "validation"
    ]


def test_several_captions_of_an_image_in_any_order(folder):
    rows = [{"image": row["image"], "caption": f"{row['caption']} {k}"} for k in range(3) for row in ROWS]

    splits = read(jsonl(folder, rows))

    assert len(splits.train) + len(splits.validation) + len(splits.test) == 180
    for part in (splits.train, splits.validation, splits.test):
        numbers = sorted({number for number, _ in pairs(part)})
        assert pairs(part) == [(number, f"ünber {number} {k}") for k in range(3) for number in numbers]


def test_grey_images_have_one_channel(folder):
    for path in folder.glob("images/*"):
        Image.new("L", (4, 4), 7).save(path)

    assert read(jsonl(folder, ROWS)).test.images.shape[1:] == (4, 4, 1)


def test_a_split_of_grey_images_has_three_channels_when_another_is_coloured(folder):
    Image.new("L", (4, 4), 7).save(folder / "images/0.png")
    rows = [{**row, "split": "train" if index else "test"} for index, row in enumerate(ROWS)]

    np.testing.assert_array_equal(read(jsonl(folder, rows)).test.images, np.full((1, 4, 4, 3), 7))


def test_a_mark_at_the_beginning_and_empty_lines(folder):
    lines = "\n".join(json.dumps(row) for row in ROWS)
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n\r\n").encode())
    (folder / "a.csv").write_bytes(
        b"\xef\xbb\xbfimage,caption\r\n"
        + b"".join(f"{row['image']},{row['caption']}\r\n\r\n".encode() for row in ROWS)
    )

    for name in ("a.jsonl", "a.csv"):
        assert len(read(folder / name).train) > 40


def test_longest_counts_bytes(folder):
    assert read(jsonl(folder, ROWS), longest=9).train  # "ünber 10" has eight letters and nine bytes
    with pytest.raises(
        ValueError, match=r"at most longest=8 bytes of UTF-8; got 50 of 60 in path="
    ) as caught:
        read(jsonl(folder, ROWS), longest=8)

    message = str(caught.value)
    assert "\n  line 11: 9 bytes, 'ünber 10'" in message
    assert "\n  and 45 more\n" in message
    assert "skip_long=True (--skip-long)" in message


def test_long_captions_can_be_left_out(folder):
    rows = [*ROWS, {"image": "images/3.png", "caption": "x" * 21}]

    splits = read(jsonl(folder, rows), skip_long=True)

    assert len(splits.train) + len(splits.validation) + len(splits.test) == 60
    assert splits.skipped == (f"line 61: 21 bytes, '{'x' * 21}'…",)


def test_unreadable_images_are_named(folder):
    (folder / "images/7.png").unlink()
    (folder / "images/8.png").write_bytes(b"no image")
    rows = [*ROWS, {"image": "images/7.png", "caption": "again"}]

    with pytest.raises(
        ValueError, match=r"every image must be readable; got 2 of 60 in path=.*captions\.jsonl"
    ) as caught:
        read(jsonl(folder, rows))

    assert "\n  images/7.png: there is no such file" in str(caught.value)
    assert "\n  images/8.png: no image in one of the formats" in str(caught.value)
    assert "skip_unreadable=True (--skip-unreadable)" in str(caught.value)


def test_unreadable_images_can_be_left_out(folder):
    (folder / "images/7.png").unlink()
    rows = [
        *ROWS,
        {"image": "images/7.png", "caption": "again"},
        {"image": "images/9.png", "caption": "again"},
    ]

    splits = read(jsonl(folder, rows), skip_unreadable=True)

    kept = sorted(pair for part in (splits.train, splits.validation, splits.test) for pair in pairs(part))
    assert kept == sorted(
        [(number, f"ünber {number}") for number in range(60) if number != 7] + [(9, "again")]
    )
    assert splits.skipped == ("images/7.png: there is no such file",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "text": "a"}, "there is no caption, only image, text"),
        ({"caption": "a"}, "there is no image, only caption"),
        ({}, "there is no image, only nothing"),
        ({"image": None, "caption": "a"}, "image must be a text and not empty; got None"),
        (
            {"image": "a.png", "caption": ["a", "b"]},
            r"caption must be a text and not empty; got \['a', 'b'\]",
        ),
        ({"image": "a.png", "caption": " \n"}, r"caption must be a text and not empty; got ' \\n'"),
        (
            {"image": "a.png", "caption": "\ud83d"},
            r"caption must be valid Unicode \(surrogates not allowed\); got '\\ud83d'",
        ),
        ({"image": "\ud83d", "caption": "a"}, "image must be valid Unicode .*"),
        (
            {"image": "a.png", "caption": "a", "split": "dev"},
            "split must be one of train, validation, valid, val, test; got 'dev'",
        ),
        ({"image": "a.png", "caption": "a", "split": 3}, "split must be one of .*; got 3"),
    ],
)
def test_wrong_line(folder, row, message):
    with pytest.raises(
        ValueError, match=rf"got 1 in path=.* which are wrong:\n  line 61: {message}\nrepair or remove"
    ):
        read(jsonl(folder, [*ROWS, row]))


def test_many_wrong_lines(folder):
    with pytest.raises(ValueError, match=r"got 8 in path=.*(\n  line 6\d: .*){5}\n  and 3 more\n"):
        read(jsonl(folder, [*ROWS, *8 * [{}]]))


def test_a_line_without_a_split_where_others_have_one(folder):
    rows = [{**row, "split": "train"} for row in ROWS]
    del rows[4]["split"]

    with pytest.raises(ValueError, match=r"which are wrong:\n  line 5: there is no split\n"):
        read(jsonl(folder, rows))


def test_an_image_in_two_splits(folder):
    rows = [{**row, "split": "train" if index else "test"} for index, row in enumerate(ROWS)]
    rows.append({"image": "./images/0.png", "caption": "again", "split": "train"})

    with pytest.raises(ValueError, match=r"line 61: images/0\.png is in train, but in test at line 1\n"):
        read(jsonl(folder, rows))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"image": "a.png", "caption": "a"', "Expecting ',' delimiter"),
        (b'["a.png", "a"]', r"\['a\.png', 'a'\] is no object with names and values"),
        (b'{"image": "a.png", "caption": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, "maximum recursion depth"),
    ],
    ids=["broken", "list", "latin-1", "deep"],
)
def test_broken_line_of_json(folder, line, message):
    path = jsonl(folder, ROWS)
    path.write_bytes(path.read_bytes() + line)

    with pytest.raises(
        ValueError, match=rf"must be a JSON object in UTF-8; got 1 in path=.*:\n  line 61: {message}"
    ):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "image;caption\na.png;a\n",
            r"columns image and caption; got columns=\['image;caption'\], without image and caption, in path=.*commas separate",
        ),
        ("image,text\na.png,a\n", r"got columns=\['image', 'text'\], without caption, in"),
        ("", r"got columns=\[\], without image and caption"),
        ("image,caption\n", r"must have lines; got path=.* without any"),
        (
            "image,caption\na.png,a cat, asleep\n",
            r"must have 2 fields, as the first; got 1 in .*\n  line 2: \['a.png', 'a cat', \[' asleep'\]\]\nput captions",
        ),
        ("image,caption\na.png\n", r"must have 2 fields.*\n  line 2: \['a.png', None\]"),
        (
            'image,caption\na.png,"a cat\nb.png,b\n',
            r"a whole CSV file in UTF-8; got path=.*after line 1: unexpected end of data",
        ),
        (
            "image,caption\na.png," + 200_000 * "a",
            r"a whole CSV file in UTF-8; got path=.*field larger than field limit",
        ),
    ],
    ids=["semicolons", "column", "empty", "header", "comma", "short", "quote", "field"],
)
def test_wrong_csv(folder, content, message):
    (folder / "a.csv").write_text(content)

    with pytest.raises(ValueError, match=message):
        read(folder / "a.csv")


def test_csv_in_another_encoding(folder):
    (folder / "a.csv").write_bytes("image,caption\na.png,Bär\n".encode("latin-1"))

    with pytest.raises(
        ValueError,
        match=r"a whole CSV file in UTF-8; got path='.*a\.csv' \('utf-8' codec can't decode byte 0xe4",
    ):
        read(folder / "a.csv")


def test_empty_jsonl(folder):
    with pytest.raises(ValueError, match=r"must have lines; got path='.*captions\.jsonl' without any"):
        read(jsonl(folder, []))


def test_missing_column_of_parquet(folder):
    path = parquet(folder, [{"image": "a.png", "text": "a"}])

    with pytest.raises(
        ValueError, match=r"got columns=\['image', 'text'\], without caption, in path='.*captions\.parquet'"
    ):
        read(path)


def test_wrong_row_of_parquet(folder):
    path = parquet(folder, [*ROWS, {"image": "a.png", "caption": None}])

    with pytest.raises(
        ValueError, match=r"which are wrong:\n  row 61: caption must be a text and not empty; got None"
    ):
        read(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-30],
        lambda content: content[:4] + bytes(200) + content[204:],
    ],
    ids=["empty", "truncated", "overwritten"],
)
def test_damaged_parquet(folder, damage):
    path = parquet(folder, ROWS)
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(
        ValueError,
        match=r"a whole Parquet file; got path='.*captions\.parquet' \((?s:.+)\); make or download",
    ):
        read(path)


def test_a_pointer_in_the_place_of_a_file(folder):
    path = parquet(folder, ROWS)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\n")
    with pytest.raises(ValueError, match=r"\(it is a pointer of Git LFS .*; run git lfs pull\)"):
        read(path)


def test_parquet_without_pyarrow(folder, monkeypatch):
    path = parquet(folder, ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    with pytest.raises(
        ModuleNotFoundError,
        match=r"read with pyarrow; got path='.*parquet'.*pip install pyarrow",
    ):
        read(path)


@pytest.mark.parametrize("name", ["captions.json", "captions", "images"])
def test_another_kind_of_file(folder, name):
    if name != "images":
        (folder / name).write_text("[]")

    with pytest.raises(
        ValueError, match=rf"a \.jsonl, \.csv or \.parquet file .*; got path='.*{name}'; write"
    ):
        read(folder / name)


def test_a_folder_whose_name_looks_like_a_file(tmp_path):
    (tmp_path / "a.csv").mkdir()

    with pytest.raises(
        ValueError, match=r"path must be a \.jsonl, \.csv or \.parquet file .*; got path='.*a\.csv'"
    ):
        read(tmp_path / "a.csv")


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"that exists; got path='.*nowhere\.csv'"):
        read(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("write", [jsonl, comma_separated, parquet])
def test_no_permission(folder, write, monkeypatch):
    path = write(folder, ROWS)

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)

    with pytest.raises(
        PermissionError, match=r"path must be readable; got path='.*captions\..*' and not enough"
    ):
        read(path)


def test_too_few_captions_for_a_split(folder):
    with pytest.raises(
        ValueError, match=r"must be captions to train on.* got train=8, validation=0, test=1 .*column split"
    ):
        read(jsonl(folder, ROWS[:9]))


@pytest.mark.parametrize("name", ["size", "longest"])
def test_sizes(folder, name):
    with pytest.raises(ValueError, match=f"{name} must be an integer ≥ 1; got {name}=0"):
        captioned_images(jsonl(folder, ROWS), **{"size": 4, "longest": 20, name: 0})
