"""Images as arrays: names, splits, IDX files, and every way in which they can be wrong."""

import gzip
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxmodels.data import labelled_images, texts
from jaxmodels.data.readers import arrays
from jaxmodels.data.readers.splitting import choose_split


IMAGES = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
LABELS = np.arange(60) % 3


def npz(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def idx(path, array):
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist(folder, suffix=".gz", test="t10k", mark="-"):
    idx(folder / f"train-images{mark}idx3-ubyte{suffix}", IMAGES)
    idx(folder / f"train-labels{mark}idx1-ubyte{suffix}", LABELS.astype(np.uint8))
    idx(folder / f"{test}-images{mark}idx3-ubyte{suffix}", IMAGES[:7])
    idx(folder / f"{test}-labels{mark}idx1-ubyte{suffix}", LABELS[:7].astype(np.uint8))
    return folder


def places(split, given=()):
    return [index for index in range(60) if choose_split(str(index), given) == split]


def test_arrays_are_split_by_number(tmp_path):
    splits = labelled_images(npz(tmp_path, images=IMAGES, labels=LABELS), size=4)

    assert splits.source == str(tmp_path / "data.npz")
    assert splits.class_names == ("0", "1", "2")
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        np.testing.assert_array_equal(part.images, IMAGES[places(name)][..., None])
        np.testing.assert_array_equal(part.labels, LABELS[places(name)])
        assert part.labels.dtype == np.int32


@pytest.mark.parametrize(
    "names",
    [
        ("images", "labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("data", "labels", "x_test", "y_test"),
    ],
)
def test_names_of_arrays(tmp_path, names):
    arrays = dict(zip(names, (IMAGES, LABELS, IMAGES[:7], LABELS[:7]), strict=True))

    splits = labelled_images(npz(tmp_path, **arrays), size=4)

    np.testing.assert_array_equal(splits.test.images[..., 0], IMAGES[:7])
    np.testing.assert_array_equal(splits.train.images[..., 0], IMAGES[places("train", {"test"})])
    np.testing.assert_array_equal(splits.validation.labels, LABELS[places("validation", {"test"})])


@pytest.mark.parametrize(
    ("images", "labels"),
    [("val_images", "val_labels"), ("x_val", "y_val"), ("validation_images", "validation_labels")],
)
def test_arrays_that_are_split_in_three(tmp_path, images, labels):
    arrays = {images: IMAGES[:5], labels: LABELS[:5, None]}
    path = npz(
        tmp_path,
        x_train=IMAGES,
        y_train=LABELS[:, None],
        x_test=IMAGES[:7],
        y_test=LABELS[:7, None],
        **arrays,
    )

    splits = labelled_images(path, size=4)

    assert [len(splits.train), len(splits.validation), len(splits.test)] == [60, 5, 7]
    np.testing.assert_array_equal(splits.train.labels, LABELS)


@pytest.mark.parametrize(
    ("values", "names"), [([-1, 0, 1], ("-1", "0", "1")), ([7, 30, 5], ("5", "7", "30"))]
)
def test_labels_may_be_any_integers(tmp_path, values, names):
    labels = np.array(values)[LABELS]

    splits = labelled_images(npz(tmp_path, images=IMAGES, labels=labels), size=4)

    assert splits.class_names == names
    assert [int(splits.class_names[label]) for label in splits.test.labels] == labels[places("test")].tolist()


@pytest.mark.parametrize(("channels", "expected"), [(1, 1), (3, 3), (4, 3)])
def test_channels_and_size(tmp_path, channels, expected):
    images = np.repeat(IMAGES[..., None], channels, axis=-1)

    splits = labelled_images(npz(tmp_path, images=images, labels=LABELS), size=6)

    assert splits.train.images.shape == (len(places("train")), 6, 6, expected)


def test_arrays_that_are_not_known_are_told(tmp_path):
    path = npz(tmp_path, images=IMAGES, labels=LABELS, mean=np.zeros(3))

    assert labelled_images(path, size=4).skipped == ("array 'mean': neither images nor classes by its name",)


def test_arrays_without_labels(tmp_path):
    path = npz(tmp_path, images=IMAGES)

    assert labelled_images(path, size=4, require_classes=False).class_names == ("unlabelled",)
    with pytest.raises(
        ValueError, match=r"at least two classes; got 1 \(unlabelled\) .*give arrays with labels"
    ):
        labelled_images(path, size=4)


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_idx_folder(tmp_path, mark, suffix, test):
    splits = labelled_images(mnist(tmp_path, suffix, test, mark), size=4)

    assert splits.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(splits.test.images[..., 0], IMAGES[:7])
    np.testing.assert_array_equal(splits.train.images[..., 0], IMAGES[places("train", {"test"})])
    np.testing.assert_array_equal(splits.train.labels, LABELS[places("train", {"test"})])
    assert len(splits.validation) == len(places("validation"))


def test_idx_files_may_be_there_packed_and_unpacked(tmp_path):
    mnist(tmp_path, "")
    mnist(tmp_path, ".gz")
    (tmp_path / "README.md").write_text("about")

    splits = labelled_images(tmp_path, size=4)

    assert len(splits.test) == 7
    assert splits.skipped == ("1 × *.md: no file in the IDX format by its name",)


def test_idx_folder_without_labels(tmp_path):
    idx(tmp_path / "train-images-idx3-ubyte", IMAGES)

    assert labelled_images(tmp_path, size=4, require_classes=False).class_names == ("unlabelled",)


@pytest.mark.parametrize(
    "read", [lambda path: labelled_images(path, size=4), texts], ids=["labelled_images", "texts"]
)
class TestErrors:
    """Both readers of arrays raise them, because both call `read_arrays`."""

    @pytest.mark.usefixtures("unchecked_types")
    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            (
                {"labels": LABELS},
                "must hold images and be called images or data or x_train or train_images; got labels in path=",
            ),
            (
                {"pixels": IMAGES},
                "be called images or data or x_train or train_images; got pixels in path=.*; rename",
            ),
            ({}, "be called images .*; got none in path="),
            (
                {"images": IMAGES, "x_train": IMAGES},
                "only one of the arrays images, .*; got images and x_train in path=",
            ),
            (
                {"images": IMAGES, "labels": LABELS[:-1]},
                "as many labels as images; got 59 labels and 60 images for train in path=",
            ),
            (
                {"images": IMAGES, "labels": LABELS / 2},
                "labels must be an array of integers.*; got dtype=float64, shape=.* for train",
            ),
            (
                {"images": IMAGES, "labels": LABELS.astype(str)},
                "labels must be an array of integers.*; got dtype=<U",
            ),
            (
                {"images": IMAGES, "labels": np.eye(3, dtype=int)[LABELS]},
                r"one for each image; got dtype=int64, shape=\(60, 3\)",
            ),
            (
                {"images": IMAGES, "labels": LABELS, "x_test": IMAGES},
                "must have labels, or none; got labels for train and images for train, test",
            ),
            (
                {"images": IMAGES, "labels": LABELS, "y_test": LABELS},
                "must hold images and be called x_test or test_images; got images, labels, y_test in",
            ),
            (
                {"images": IMAGES / 255},
                r"images must be a uint8 array .*; got dtype=float64, shape=\(60, 4, 4\) for train .*\* 255",
            ),
            ({"images": IMAGES[:0]}, r"got dtype=uint8, shape=\(0, 4, 4\)"),
            ({"images": np.uint8(3)}, r"got dtype=uint8, shape=\(\)"),
            (
                {"images": np.array([IMAGES, None], dtype=object)},
                r"a whole \.npz file without Python objects; got path='.*data\.npz' \(Object arrays",
            ),
        ],
        ids=lambda value: None if isinstance(value, dict) else value[:40],
    )
    def test_wrong_arrays(self, tmp_path, read, arrays, message):
        with pytest.raises(ValueError, match=message):
            read(npz(tmp_path, **arrays))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: b"no archive",
            lambda content: content[: len(content) // 2],
            lambda content: content[:200] + bytes(50) + content[250:],
            lambda content: b"\x93NUMPY\x01\x00v\x00" + content,
            lambda content: b"\x80\x04N.",  # a pickle
        ],
        ids=["empty", "text", "half", "zeros", "npy", "pickle"],
    )
    def test_damaged_npz(self, tmp_path, read, damage):
        path = npz(tmp_path, images=IMAGES, labels=LABELS)
        path.write_bytes(damage(path.read_bytes()))

        with pytest.raises(
            ValueError,
            match=r"must be a whole \.npz file .*; got path='.*data\.npz' \(.+\); make or download it again",
        ):
            read(path)

    def test_nobody_is_told_to_run_what_is_in_a_file(self, tmp_path, read):
        (tmp_path / "data.npz").write_text("hello")
        with pytest.raises(ValueError, match=r"\(it is no \.npz archive\)"):
            read(tmp_path / "data.npz")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda content: content[:-1], r"header says shape=\(60, 4, 4\), but 959 values follow"),
            (lambda content: content + b"\0", r"header says shape=\(60, 4, 4\), but 961 values follow"),
            (lambda content: content[:9], "unpack requires"),
            (lambda content: b"", "begins with b''"),
            (lambda content: b"\0\0\x0d" + content[3:], r"begins with b'\\x00\\x00\\r\\x03'"),
            (lambda content: b"version https://git-lfs", "begins with b'vers'"),
        ],
        ids=["short", "long", "header", "empty", "floats", "text"],
    )
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_damaged_idx(self, tmp_path, read, suffix, damage, message):
        path = mnist(tmp_path, suffix) / f"train-images-idx3-ubyte{suffix}"
        if suffix:
            path.write_bytes(gzip.compress(damage(gzip.decompress(path.read_bytes()))))
        else:
            path.write_bytes(damage(path.read_bytes()))

        with pytest.raises(
            ValueError, match=rf"a whole IDX file; got path='.*train-images-idx3-ubyte{suffix}' \(.*{message}"
        ):
            read(tmp_path)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content[:-9],
            lambda content: content[:20] + b"\xff" * 9 + content[29:],
            lambda content: b"text",
        ],
        ids=["truncated", "overwritten", "text"],
    )
    def test_damaged_gzip(self, tmp_path, read, damage):
        path = mnist(tmp_path) / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(damage(path.read_bytes()))

        with pytest.raises(
            ValueError, match=r"a whole IDX file; got path='.*t10k-images-idx3-ubyte\.gz' \(.+\)"
        ):
            read(tmp_path)

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            (
                "train-images-idx3-ubyte.gz",
                "must have the train images, for instance train-images-idx3-ubyte.gz or .*; got t10k-images",
            ),
            ("t10k-images-idx3-ubyte.gz", "must have the test images, .*add them"),
            (
                "t10k-labels-idx1-ubyte.gz",
                "must have labels, or none; got labels for train and images for train, test",
            ),
        ],
    )
    def test_missing_idx_file(self, tmp_path, read, missing, message):
        (mnist(tmp_path) / missing).unlink()

        with pytest.raises(ValueError, match=message):
            read(tmp_path)

    def test_only_test_images(self, tmp_path, read):
        idx(tmp_path / "t10k-images-idx3-ubyte", IMAGES)

        with pytest.raises(
            ValueError, match=r"must have the train images, .*; got t10k-images-idx3-ubyte in path="
        ):
            read(tmp_path)

    def test_two_data_sets_in_one_folder(self, tmp_path, read):
        mnist(tmp_path)
        idx(tmp_path / "emnist-letters-train-images-idx3-ubyte", IMAGES)

        with pytest.raises(
            ValueError,
            match=r"one file with the train images; got emnist-letters-.* and train-images-.*folder of its own",
        ):
            read(tmp_path)

    @pytest.mark.parametrize("name", ["data.npz", "train-labels-idx1-ubyte.gz"])
    def test_no_permission(self, tmp_path, read, name, monkeypatch):
        npz(tmp_path, images=IMAGES)
        mnist(tmp_path)

        def refuse(*_, **__):
            raise PermissionError

        monkeypatch.setattr(Path, "open", refuse)
        monkeypatch.setattr(Path, "read_bytes", refuse)

        with pytest.raises(
            PermissionError, match=r"path must be readable; got path=.* and not enough permission"
        ):
            read(tmp_path / name if name == "data.npz" else tmp_path)

    def test_too_few_images_for_a_split(self, tmp_path, read):
        with pytest.raises(
            ValueError,
            match=r"to train on, .* got train=\d+, validation=0, test=0 from .* arrays x_train, x_val and x_test",
        ):
            read(npz(tmp_path, images=IMAGES[:3], labels=np.arange(3)))


@pytest.mark.usefixtures("unchecked_types")
def test_a_file_of_another_kind_in_the_archive(tmp_path):
    path = npz(tmp_path, labels=LABELS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images", "no array")

    with pytest.raises(ValueError, match=r"images must be a uint8 array .*; got dtype=\|S8, shape=\(\)"):
        labelled_images(path, size=4)


@pytest.mark.parametrize("shape", [(60, 3072), (60, 3, 32, 32), (60, 4, 4, 2), (60, 2, 4, 4, 3)])
def test_arrays_that_are_no_images(tmp_path, shape):
    path = npz(tmp_path, images=np.zeros(shape, np.uint8), labels=LABELS)

    with pytest.raises(
        ValueError, match=r"1, 3 or 4 channels; got shape=\(\d+, .* in path=.*transpose\(0, 2, 3, 1\)"
    ):
        labelled_images(path, size=4)


def test_a_class_that_is_only_tested(tmp_path):
    path = npz(tmp_path, images=IMAGES, labels=LABELS, x_test=IMAGES[:4], y_test=np.array([0, 1, 2, 9]))

    with pytest.raises(
        ValueError, match=r"got 1 of 4 classes without, .*\n  9: train 0, validation 0, test 1\n"
    ):
        labelled_images(path, size=4)


def test_labels_of_two_types_are_exact(tmp_path):
    """NumPy compares int64 with uint64 as float64, which merges large numbers."""
    large = np.where(LABELS[0] == LABELS, 2**53, 2**53 + 1)
    path = npz(
        tmp_path, images=IMAGES, labels=large.astype(np.uint64), x_test=IMAGES, y_test=large.astype(np.int64)
    )
    splits = labelled_images(path, size=4)
    assert splits.class_names == (str(2**53), str(2**53 + 1))
    np.testing.assert_array_equal(splits.test.labels, large - 2**53)
    small = npz(
        tmp_path,
        images=IMAGES,
        labels=LABELS.astype(np.uint64),
        x_test=IMAGES,
        y_test=LABELS.astype(np.int64),
    )
    assert all("." not in name for name in labelled_images(small, size=4).class_names)


def test_a_file_that_would_become_very_large(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "ANY_COMPRESSION_BELOW", 2**20)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((600, 64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"a\.npz' \(its .* bytes would become 2,457,.* or more\)"):
        labelled_images(tmp_path / "a.npz", size=4)
    folder = tmp_path / "idx"
    folder.mkdir()
    idx(folder / "train-images-idx3-ubyte.gz", np.zeros((600, 64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"ubyte\.gz' \(its .* bytes would become 1,048,577 or more\)"):
        labelled_images(folder, size=4)


def test_an_idx_file_without_an_end(tmp_path):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(ValueError, match="it is not a regular file"):
        labelled_images(tmp_path, size=4)


def batches(folder, train=(1, 2, 10)):
    """As downsampled ImageNet is distributed: planes in rows, classes from 1."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20 * len(train), 8, 8, 3), np.uint8)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    labels = 1 + np.arange(len(images)) % 3
    for place, number in enumerate(train):
        part = slice(20 * place, 20 * place + 20)
        np.savez(
            folder / f"train_data_batch_{number}.npz", data=rows[part], labels=labels[part], mean=rows.mean(0)
        )
    return images, labels, rows


def test_batches_of_downsampled_imagenet(tmp_path):
    images, labels, rows = batches(tmp_path)
    np.savez(tmp_path / "val_data.npz", data=rows[:9], labels=labels[:9])
    (tmp_path / "readme.txt").write_text("note")

    splits = labelled_images(tmp_path, size=8)

    assert splits.class_names == ("1", "2", "3")
    np.testing.assert_array_equal(splits.validation.images, images[:9])
    kept = [index for index in range(60) if choose_split(str(index), {"train", "validation"}) == "train"]
    np.testing.assert_array_equal(splits.train.images, images[kept])
    np.testing.assert_array_equal(splits.train.labels, labels[kept] - 1)
    assert splits.skipped == ("1 × *.txt: no batch of a data set by its name",)


def test_batches_that_do_not_fit(tmp_path):
    _, labels, rows = batches(tmp_path)
    np.savez(tmp_path / "train_data_batch_3.npz", data=rows[:5, :48], labels=labels[:5])
    with pytest.raises(ValueError, match=r"one shape, .*; got shapes \(4, 4, 3\), \(8, 8, 3\) in path="):
        labelled_images(tmp_path, size=8)
    for path in tmp_path.glob("train*"):
        path.unlink()
    np.savez(tmp_path / "val_data.npz", data=rows, labels=labels)
    with pytest.raises(
        ValueError, match=r"must have training data, for instance train_data_batch_1.npz; got val_data"
    ):
        labelled_images(tmp_path, size=8)
