"""Folders of images: layouts, splits, and every way in which they can be wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmodels.data import labelled_images
from jaxmodels.data.readers.splitting import choose_split


def fill(folder, names=range(40), colour=(10, 20, 30)):
    """Images of one colour each, whose red is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", (4, 4), (index, *colour[1:])).save(folder / f"{name}.png")


@pytest.fixture
def animals(tmp_path):
    """80 images of two classes, told apart by their blue."""
    fill(tmp_path / "cat", colour=(0, 0, 100))
    fill(tmp_path / "dog", colour=(0, 0, 200))
    return tmp_path


def test_class_folders(animals):
    splits = labelled_images(animals, size=4)

    assert splits.source == str(animals)
    assert splits.class_names == ("cat", "dog")
    assert splits.skipped == ()
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 80
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        expected = [
            (label, number)
            for label, folder in enumerate(("cat", "dog"))
            for number in sorted(range(40), key=lambda number: f"{number}.png")
            if choose_split(f"{folder}/{number}.png", ()) == name
        ]
        assert part.images.shape == (len(expected), 4, 4, 3)
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int32
        assert list(zip(part.labels.tolist(), part.images[:, 0, 0, 0].tolist(), strict=True)) == expected
        np.testing.assert_array_equal(part.images[:, 0, 0, 2], 100 + 100 * part.labels)


def test_the_split_does_not_depend_on_where_the_folder_is(animals, tmp_path_factory):
    before = labelled_images(animals, size=4)
    moved = animals.rename(tmp_path_factory.mktemp("elsewhere") / "data")
    after = labelled_images(str(moved), size=4)

    np.testing.assert_array_equal(before.test.images, after.test.images)


def test_added_images_move_no_others(animals):
    before = labelled_images(animals, size=4).test.images[:, 0, 0].tolist()
    fill(animals / "cat", names=[f"more-{index}" for index in range(40)], colour=(0, 1, 100))
    after = labelled_images(animals, size=4).test.images[:, 0, 0].tolist()

    assert [pixel for pixel in after if pixel[1] != 1] == before


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "Val"])
def test_folders_of_splits(tmp_path, validation):
    for name, count in (("train", 5), (validation, 2), ("test", 3)):
        fill(tmp_path / name / "cat", range(count))
        (tmp_path / name / "cat" / "0.png").rename(tmp_path / name / "cat" / "0.PNG")
        fill(tmp_path / name / "dog", range(count))

    splits = labelled_images(tmp_path, size=4)

    assert [len(splits.train), len(splits.validation), len(splits.test)] == [10, 4, 6]
    assert splits.train.labels.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(("given", "other"), [("test", "validation"), ("validation", "test")])
def test_a_missing_split_is_a_tenth_of_the_training_folder(tmp_path, given, other):
    for name in ("cat", "dog"):
        fill(tmp_path / "train" / name)
        fill(tmp_path / given / name, range(3))

    splits = labelled_images(tmp_path, size=4)

    taken = [
        (folder, number)
        for folder in ("cat", "dog")
        for number in range(40)
        if choose_split(f"train/{folder}/{number}.png", {"train", given}) == other
    ]
    assert taken
    assert len(getattr(splits, given)) == 6
    assert len(getattr(splits, other)) == len(taken)
    assert len(splits.train) == 80 - len(taken)


@pytest.mark.parametrize("folder", ["", "train"])
def test_images_without_classes(tmp_path, folder):
    fill(tmp_path / folder)

    splits = labelled_images(tmp_path, size=4, require_classes=False)

    assert splits.class_names == ("unlabelled",)
    assert not splits.train.labels.any()
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 40


def test_classes_may_be_called_like_splits(animals):
    fill(animals / "train", colour=(0, 0, 0))

    assert labelled_images(animals, size=4).class_names == ("cat", "dog", "train")


def test_hidden_files_are_passed_over_and_other_files_told(animals):
    for name in (".DS_Store", "cat/._1.png", "cat/Thumbs.db", "cat/notes.txt", "dog/notes.TXT", "LICENSE"):
        (animals / name).write_text("no image")
    fill(animals / "__MACOSX")
    fill(animals / ".cache")

    splits = labelled_images(animals, size=4)

    assert splits.class_names == ("cat", "dog")
    assert splits.skipped == (
        "1 × file without suffix: no image that can be read, by its suffix",
        "1 × *.db: no image that can be read, by its suffix",
        "2 × *.txt: no image that can be read, by its suffix",
    )


def damage(folder, numbers):
    for number in numbers:
        path = folder / f"{number}.png"
        path.write_bytes(path.read_bytes()[:50])


def test_unreadable_images_are_named(animals):
    damage(animals / "dog", range(7))

    with pytest.raises(ValueError, match="every image must be readable") as caught:
        labelled_images(animals, size=4)

    message = str(caught.value)
    assert f"got 7 of 80 in path={str(animals)!r} which are not" in message
    assert message.count("  dog/") == 5
    assert "image file is truncated" in message
    assert "\n  and 2 more\n" in message
    assert "skip_unreadable=True (--skip-unreadable)" in message


def test_unreadable_images_can_be_left_out(animals):
    whole = labelled_images(animals, size=4)
    damage(animals / "dog", [3, 5])
    (animals / "dog" / "note.txt").write_text("no image")

    splits = labelled_images(animals, size=4, skip_unreadable=True)

    assert len(splits.train) + len(splits.validation) + len(splits.test) == 78
    assert [text.split(":")[0] for text in splits.skipped] == ["1 × *.txt", "dog/3.png", "dog/5.png"]
    kept = [
        pixel for pixel in whole.train.images[:, 0, 0].tolist() if pixel not in ([3, 0, 200], [5, 0, 200])
    ]
    assert splits.train.images[:, 0, 0].tolist() == kept
    np.testing.assert_array_equal(splits.train.images[:, 0, 0, 2], 100 + 100 * splits.train.labels)


def test_broken_link_is_an_unreadable_image(animals):
    (animals / "cat" / "link.png").symlink_to(animals / "nowhere.png")

    with pytest.raises(ValueError, match=r"got 1 of 81 .*\n  cat/link\.png: there is no such file"):
        labelled_images(animals, size=4)


def test_a_class_of_which_nothing_is_readable(animals):
    damage(animals / "dog", range(40))

    with pytest.raises(
        ValueError, match=r"got 1 of 2 classes without.*\n  dog: train 0, validation 0, test 0"
    ):
        labelled_images(animals, size=4, skip_unreadable=True)


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"a file or folder that exists; got path='.*nowhere', looked for in"
    ):
        labelled_images(tmp_path / "nowhere", size=4)


def test_a_path_that_is_empty():
    with pytest.raises(FileNotFoundError, match="got path=''"):
        labelled_images("", size=4)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")

    with pytest.raises(
        ValueError, match=r"or a folder of IDX or Parquet files; got path='.*images\.zip'; .* unpack"
    ):
        labelled_images(tmp_path / "images.zip", size=4)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_size(tmp_path, size):
    with pytest.raises(ValueError, match=f"size must be an integer ≥ 1; got size={size}"):
        labelled_images(tmp_path, size=size)


@pytest.mark.parametrize(("names", "count"), [([], 0), (["a.txt", "b.heic"], 2)])
def test_no_images(tmp_path, names, count):
    for name in names:
        (tmp_path / name).write_text("no image")

    with pytest.raises(
        ValueError, match=rf"must hold images \(\.bmp.*got none, and {count} other files, in path="
    ):
        labelled_images(tmp_path, size=4)


@pytest.mark.parametrize("folder", ["", "cat"])
def test_one_class_only(tmp_path, folder):
    fill(tmp_path / folder)

    name = folder or "unlabelled"
    with pytest.raises(
        ValueError, match=rf"at least two classes; got 1 \({name}\) from path=.*folder of its own"
    ):
        labelled_images(tmp_path, size=4)


def test_an_empty_class(animals):
    (animals / "bird").mkdir()

    with pytest.raises(
        ValueError, match=r"got 1 of 3 classes without, .*\n  bird: train 0, validation 0, test 0\nremove"
    ):
        labelled_images(animals, size=4)


def test_a_class_that_is_only_tested_is_found_before_images_are_opened(tmp_path):
    for name in ("train", "test"):
        fill(tmp_path / name / "cat")
        fill(tmp_path / name / "dog")
    fill(tmp_path / "test" / "bird", range(3))
    damage(tmp_path / "train" / "dog", range(40))

    with pytest.raises(
        ValueError,
        match=r"every class must have images to train on.*\n  bird: train 0, validation 0, test 3",
    ):
        labelled_images(tmp_path, size=4)


def test_too_few_images_for_a_split(tmp_path):
    fill(tmp_path / "cat", range(2))
    fill(tmp_path / "dog", range(2))

    with pytest.raises(
        ValueError,
        match=r"must be images to train on.* got train=3, validation=0, test=1 .*folders train, validation and test",
    ):
        labelled_images(tmp_path, size=4)


@pytest.mark.parametrize(
    "names",
    [
        ["val/cat", "test/cat"],
        ["train/cat", "val/cat", "valid/cat"],
        ["train/cat", "testing/cat"],
    ],
)
def test_folders_of_splits_that_do_not_fit(tmp_path, names):
    for name in names:
        fill(tmp_path / name, range(2))

    with pytest.raises(
        ValueError, match=r"already split must be train, .*with nothing beside them; got \n"
    ) as caught:
        labelled_images(tmp_path, size=4)

    assert all(Path(name).parts[0] in str(caught.value) for name in names)


def test_an_image_beside_folders_of_splits(tmp_path):
    fill(tmp_path / "train" / "cat", range(2))
    fill(tmp_path, ["logo"])

    with pytest.raises(ValueError, match=r"with nothing beside them; got \n  logo\.png\n  train\n"):
        labelled_images(tmp_path, size=4)


def test_an_image_beside_class_folders(animals):
    fill(animals, ["stray"])

    with pytest.raises(
        ValueError, match=r"must be in the folder of a class.*\n  stray\.png\nbeside 2 folders in path="
    ):
        labelled_images(animals, size=4)


def test_folders_inside_a_class(tmp_path):
    for name in ("Training/cat", "Training/dog", "Testing/cat", "Testing/dog"):
        fill(tmp_path / name, range(2))

    with pytest.raises(
        ValueError,
        match=r"must hold images and no folders; got \n  Testing/cat\n.*\n.*\n.*\nin path=.*call them train",
    ):
        labelled_images(tmp_path, size=4)


def test_a_folder_without_permission(animals, monkeypatch):
    listing = Path.iterdir

    def iterdir(path):
        if path.name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)

    with pytest.raises(PermissionError, match=r"got path='.*dog' and not enough permission; change its mode"):
        labelled_images(animals, size=4)


def test_a_path_without_permission(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, "stat", refuse)

    with pytest.raises(PermissionError, match=r"path must be readable; got path='.*secret'"):
        labelled_images(tmp_path / "secret", size=4)


def test_class_names_are_text(tmp_path):
    """A name with a byte that is no UTF-8 is shown by its number; the files are found all the same."""
    for name in (b"b\xff", "ä".encode(), b"$\\foo$"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        for number in range(40):
            path = os.fsdecode(os.path.join(folder, b"%d.png" % number))
            Image.new("L", (4, 4), 7).save(path)
    splits = labelled_images(tmp_path, size=4)
    assert splits.class_names == ("$\\foo$", "b\\xff", "ä")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 120
    for name in splits.class_names:
        name.encode()
