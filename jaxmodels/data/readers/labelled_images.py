"""The user's own images with classes: a folder of class folders, an `.npz` file, or a folder in the IDX format.

`folders.py` and `arrays.py` say which layouts are read, `image_files.py` how images become squares, `splitting.py`
which examples become validation and test data.

Memory: everything is held as bytes, images · size² · channels of them (1 channel if all are stored as grey, otherwise
3), for instance 0.6 GiB for 50,000 coloured images at 64 × 64. Arrays are there twice while they are split.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, UInt8

from jaxmodels.checks import require_integer
from jaxmodels.data.datasets import LabelledImages, LabelledSplits
from jaxmodels.data.readers.arrays import Arrays, holds_arrays, read_arrays
from jaxmodels.data.readers.folders import UNLABELLED, ImageFile, read_folder
from jaxmodels.data.readers.image_files import crop_squares, read_images, same_channels, unreadable_error
from jaxmodels.data.readers.parquet import EmbeddedImage, parquet_files, read_table
from jaxmodels.data.readers.paths import existing_path, list_problems
from jaxmodels.data.readers.splitting import SPLITS, Split, choose_split, require_examples


IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")  # of a Parquet file

WAY_OUT = "add images, or split them yourself (folders train, validation and test; arrays x_train, x_val and x_test)"


def labelled_images(
    path: str | os.PathLike[str], *, size: int, skip_unreadable: bool = False, require_classes: bool = True
) -> LabelledSplits:
    """Reads images and their classes, each image as the middle of it, `size` × `size`.

    Args:
        path: a folder of class folders or of images, an `.npz` file, a folder in the IDX format, or a Parquet file
            with the columns image and label, or a folder of such files.
        size: height and width in pixels.
        skip_unreadable: leave out files that cannot be read, and list them in `skipped`, instead of an error.
        require_classes: `False` allows images without classes; they all have label 0.

    Raises:
        ValueError: unreadable images, damaged files, labels that do not fit, fewer than two classes, a class or a
            split without images, a layout that is none of these.
        FileNotFoundError: `path` leads nowhere.
        PermissionError: a file or folder may not be read.
    """
    size = require_integer("size", size, minimum=1)
    found = existing_path(path)
    if holds_arrays(found):
        return _from_arrays(found, size, require_classes)
    if tables := parquet_files(found):
        return _from_tables(found, tables, size, skip_unreadable, require_classes)
    if found.is_dir():
        return _from_folder(found, size, skip_unreadable, require_classes)
    raise ValueError(
        "path must be a folder of images, an .npz or .parquet file, or a folder of IDX or Parquet files; "
        f"got path={str(found)!r}; for an IDX file give the folder it is in, and unpack an archive first"
    )


def _from_folder(folder: Path, size: int, skip_unreadable: bool, require_classes: bool) -> LabelledSplits:
    files, class_names, skipped = read_folder(folder)
    return _from_files(folder, files, class_names, skipped, size, skip_unreadable, require_classes)


def _from_files(
    path: Path,
    files: Sequence[ImageFile],
    class_names: tuple[str, ...],
    skipped: tuple[str, ...],
    size: int,
    skip_unreadable: bool,
    require_classes: bool,
) -> LabelledSplits:
    planned = {split: [file for file in files if file.split == split] for split in SPLITS}
    # Now, before the images are opened, which takes its time, and again for those that could be read.
    _check(
        path,
        class_names,
        {split: _labels(planned[split], class_names) for split in SPLITS},
        require_classes,
    )

    images, labels, problems = {}, {}, []
    for split, part in planned.items():
        images[split], reasons = read_images([file.source for file in part], size=size)
        readable = []
        for file, reason in zip(part, reasons, strict=True):
            if reason is None:
                readable.append(file)
            else:
                problems.append(f"{file.name}: {reason}")
        labels[split] = _labels(readable, class_names)
    if problems and not skip_unreadable:
        raise unreadable_error(path, problems, len(files))
    _check(path, class_names, labels, require_classes)
    return _splits(path, images, labels, class_names, (*skipped, *problems))


def _labels(files: Sequence[ImageFile], class_names: Sequence[str]) -> Int32[np.ndarray, " n"]:
    number = {name: index for index, name in enumerate(class_names)}
    return np.array([number[file.class_name] for file in files], np.int32)


def _from_arrays(path: Path, size: int, require_classes: bool) -> LabelledSplits:
    arrays, skipped = read_arrays(path)
    if arrays["train"].labels is None:
        values, class_names = [], (UNLABELLED,)
    else:
        # Python's integers: NumPy compares int64 with uint64 as float64, which merges large ones.
        values = sorted({value for part in arrays.values() for value in _distinct(part)})
        class_names = tuple(map(str, values))
    labels = {split: _numbered(part, values) for split, part in arrays.items()}
    _check(path, class_names, labels, require_classes)
    images = {split: crop_squares(_with_channels(path, part.images), size) for split, part in arrays.items()}
    return _splits(path, images, labels, class_names, skipped)


def _distinct(part: Arrays) -> list[int]:
    return [] if part.labels is None else np.unique(part.labels).tolist()


def _numbered(part: Arrays, values: Sequence[int]) -> Int32[np.ndarray, " n"]:
    """The place of every label among all that there are."""
    if part.labels is None:
        return np.zeros(len(part), np.int32)
    place = {value: index for index, value in enumerate(values)}
    present, inverse = np.unique(part.labels, return_inverse=True)
    return np.array([place[int(value)] for value in present], np.int32)[inverse]


def _from_tables(
    path: Path,
    tables: Sequence[tuple[Split | None, Path]],
    size: int,
    skip_unreadable: bool,
    require_classes: bool,
) -> LabelledSplits:
    """Images and labels in Parquet files."""
    given = {split for split, _ in tables if split is not None}
    files: list[ImageFile] = []
    known: list[str] = []
    for split, file in tables:
        rows, names = _rows(path, file, split, given)
        files += rows
        known += names
    present = {file.class_name for file in files}
    class_names = [name for name in dict.fromkeys(known) if name in present]
    class_names += sorted(present - set(class_names), key=_in_number_order)
    return _from_files(path, files, tuple(class_names), (), size, skip_unreadable, require_classes)


def _in_number_order(name: str) -> tuple[float, str]:
    return (int(name) if name.isdecimal() else math.inf, name)


def _rows(
    path: Path, file: Path, split: Split | None, given: Collection[Split]
) -> tuple[list[ImageFile], list[str]]:
    """The rows of one table, and the names of its classes as far as it knows them."""
    table = read_table(file, (*IMAGE_COLUMNS, *LABEL_COLUMNS))
    image_column = next((name for name in IMAGE_COLUMNS if name in table.columns), None)
    label_column = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if image_column is None:
        raise ValueError(
            f"there must be a column {' or '.join(IMAGE_COLUMNS)}; got columns={table.columns} in "
            f"path={str(file)!r}; rename it"
        )
    names = table.class_names.get(label_column or "", [])
    folder, files = path if path.is_dir() else path.parent, []
    for number, row in enumerate(table.rows, start=1):
        image, label = row[image_column], row.get(label_column or "", UNLABELLED)
        where = f"{file.name}, row {number}"
        if not isinstance(image, EmbeddedImage | str) or not isinstance(label, str | int):
            raise ValueError(
                f"every row must have an image and a label, a text or an integer; got image={image!r:.40}, "
                f"label={label!r:.40} in {where} of path={str(path)!r}; repair or remove it"
            )
        class_name = names[label] if isinstance(label, int) and 0 <= label < len(names) else str(label)
        key = image.key if isinstance(image, EmbeddedImage) else image
        source = image.content if isinstance(image, EmbeddedImage) else folder / image
        chosen = choose_split(key, given) if split in (None, "train") else split
        files.append(ImageFile(source, where, class_name, chosen))
    return files, names


def _with_channels(path: Path, images: UInt8[np.ndarray, "n ..."]) -> UInt8[np.ndarray, "n height width c"]:
    if images.ndim == 3:
        return images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            "images must have the axes n height width, or n height width channels with 1, 3 or 4 channels; got "
            f"shape={images.shape} in path={str(path)!r}; images.transpose(0, 2, 3, 1) puts channels last, and "
            "images.reshape(n, 3, height, width) unfolds rows first"
        )
    return images


def _check(
    path: Path,
    class_names: Sequence[str],
    labels: Mapping[Split, Int[np.ndarray, " _"]],
    require_classes: bool,
) -> None:
    """ValueError unless there are classes, all of them in the training data, and examples in every split."""
    if require_classes and len(class_names) < 2:
        raise ValueError(
            f"there must be at least two classes; got {len(class_names)} ({', '.join(class_names)}) from "
            f"path={str(path)!r}; put the images of each class into a folder of its own, or give arrays with labels"
        )
    missing = sorted(set(range(len(class_names))) - set(labels["train"].tolist()))
    if missing:
        counts = [
            f"{class_names[index]}: "
            + ", ".join(f"{split} {np.sum(labels[split] == index)}" for split in SPLITS)
            for index in missing
        ]
        raise ValueError(
            f"every class must have images to train on; got {len(missing)} of {len(class_names)} classes without, "
            f"from path={str(path)!r}:{list_problems(counts)}\nremove these classes, or {WAY_OUT}"
        )
    require_examples(path, labels, "images", WAY_OUT)


def _splits(
    path: Path,
    images: Mapping[Split, UInt8[np.ndarray, "n size size _"]],
    labels: Mapping[Split, Int32[np.ndarray, " n"]],
    class_names: tuple[str, ...],
    skipped: tuple[str, ...],
) -> LabelledSplits:
    images = same_channels(images)
    return LabelledSplits(
        source=str(path),
        train=LabelledImages(images=images["train"], labels=labels["train"]),
        validation=LabelledImages(images=images["validation"], labels=labels["validation"]),
        test=LabelledImages(images=images["test"], labels=labels["test"]),
        class_names=class_names,
        skipped=skipped,
    )
