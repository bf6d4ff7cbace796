"""Labelled images in Parquet, as Hugging Face's data sets store them."""

import io
import json

import pyarrow
import pytest
from PIL import Image
from pyarrow.parquet import write_table

from jaxmodels.data import labelled_images


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 0)).save(stream, "png")
    return stream.getvalue()


def write(path, rows, names=None):
    table = pyarrow.Table.from_pylist(rows)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, path)
    return path


def rows(numbers=range(80), label=lambda number: number % 2):
    return [
        {"image": {"bytes": png(number), "path": f"{number}.png"}, "label": label(number)}
        for number in numbers
    ]


def everything(splits):
    return {
        int(image[0, 0, 0]): splits.class_names[label]
        for part in (splits.train, splits.validation, splits.test)
        for image, label in zip(part.images, part.labels, strict=True)
    }


def test_named_classes(tmp_path):
    splits = labelled_images(write(tmp_path / "a.parquet", rows(), ["dog", "cat"]), size=4)
    assert splits.class_names == ("dog", "cat")
    assert everything(splits) == {number: ("dog", "cat")[number % 2] for number in range(80)}
    assert splits.train.images.shape[1:] == (4, 4, 3)


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (lambda n: n % 2, ("0", "1")),
        (lambda n: (9, 10)[n % 2], ("9", "10")),
        (lambda n: "ba"[n % 2], ("a", "b")),
    ],
)
def test_other_labels(tmp_path, label, names):
    splits = labelled_images(write(tmp_path / "a.parquet", rows(label=label)), size=4)
    assert splits.class_names == names
    assert everything(splits) == {number: str(label(number)) for number in range(80)}


def test_a_folder_with_splits_and_other_names_of_columns(tmp_path):
    for name, numbers in (("train-00000-of-00001", range(60)), ("test-00000-of-00001", range(60, 80))):
        part = [{"img": row["image"]["bytes"], "labels": row["label"]} for row in rows(numbers)]
        write(tmp_path / "set" / "data" / f"{name}.parquet", part)
    splits = labelled_images(tmp_path / "set", size=4)
    assert everything(splits) == {number: str(number % 2) for number in range(80)}
    assert sorted(image[0, 0, 0] for image in splits.test.images) == list(range(60, 80))


def test_the_same_image_is_always_in_the_same_split(tmp_path):
    before = labelled_images(write(tmp_path / "a.parquet", rows()), size=4)
    after = labelled_images(write(tmp_path / "a.parquet", rows(reversed(range(120)))), size=4)
    held_out = {image.tobytes() for image in before.test.images}
    assert held_out <= {image.tobytes() for image in after.test.images}
    assert held_out


def test_without_labels(tmp_path):
    part = [{"image": row["image"]} for row in rows()]
    splits = labelled_images(write(tmp_path / "a.parquet", part), size=4, require_classes=False)
    assert splits.class_names == ("unlabelled",)
    with pytest.raises(ValueError, match="there must be at least two classes; got 1"):
        labelled_images(tmp_path / "a.parquet", size=4)


def test_unreadable_images(tmp_path):
    part = rows()
    part[3]["image"]["bytes"] = b"no image"
    path = write(tmp_path / "a.parquet", part)
    with pytest.raises(ValueError, match=r"got 1 of 80 in path=.*\n  a.parquet, row 4: no image in one of"):
        labelled_images(path, size=4)
    splits = labelled_images(path, size=4, skip_unreadable=True)
    assert len(everything(splits)) == 79


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "a label, a text or an integer; .* label=None in a.parquet, row 80 of"),
        ({"image": None}, "every row must have an image and a label, .* got image=None"),
    ],
)
def test_incomplete_rows(tmp_path, change, message):
    part = rows()
    part[-1] |= change
    with pytest.raises(ValueError, match=message):
        labelled_images(write(tmp_path / "a.parquet", part), size=4)


def test_no_column_of_images(tmp_path):
    with pytest.raises(
        ValueError, match=r"there must be a column image or img; got columns=\['a'\] in path="
    ):
        labelled_images(write(tmp_path / "a.parquet", [{"a": 1}]), size=4)


@pytest.mark.parametrize("metadata", [b"[]", b"{", b'{"info": {"features": {"label": {"names": 3}}}}'])
def test_damaged_metadata(tmp_path, metadata):
    table = pyarrow.Table.from_pylist(rows()).replace_schema_metadata({"huggingface": metadata})
    write_table(table, tmp_path / "a.parquet")
    assert labelled_images(tmp_path / "a.parquet", size=4).class_names == ("0", "1")
