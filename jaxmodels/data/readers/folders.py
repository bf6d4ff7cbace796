"""Folders of images: one folder for each class, or none, and perhaps a folder for each split above them.

| what is there | is read as |
| --- | --- |
| `cat/1.png`, `dog/1.png` | classes |
| `train/cat/1.png`, `validation/cat/2.png`, `test/cat/3.png` | classes, already split |
| `1.png`, `2.png` | images without classes |
| `train/1.png`, `test/2.png` | images without classes, already split |

`train` must be there for the names of splits to count; `validation` may be called `val` or `valid`, and it or `test`
may be missing. Hidden files are passed over; other files that are no images by their suffix are left out and told.
"""

from pathlib import Path
from typing import NamedTuple

from jaxmodels.data.readers.image_files import SUFFIXES
from jaxmodels.data.readers.paths import count_by_suffix, displayed, list_problems, visible_entries
from jaxmodels.data.readers.splitting import SPLIT_NAMES, Split, choose_split


UNLABELLED = "unlabelled"  # the one class of images without classes


class ImageFile(NamedTuple):
    """An image and what its place in the folder, or in a table, says about it."""

    source: Path | bytes
    name: str  # for messages
    class_name: str
    split: Split


def read_folder(folder: Path) -> tuple[list[ImageFile], tuple[str, ...], tuple[str, ...]]:
    """Images, the names of all classes, and what was left out; no image is opened.

    Raises:
        ValueError: no images, or a layout from which classes and splits do not follow.
        PermissionError: a folder may not be read.
    """
    parts = _split_folders(folder)
    class_names: set[str] = set()
    images: list[ImageFile] = []
    others: list[Path] = []
    for split, part in parts.items():
        names, files = _class_folders(part)
        class_names.update(names)
        for name, file in files:
            if not _is_image(file):
                others.append(file)
                continue
            key = file.relative_to(folder).as_posix()
            images.append(
                ImageFile(file, key, displayed(name), choose_split(key, parts) if split == "train" else split)
            )
    if not images:
        raise ValueError(
            f"the folder must hold images ({', '.join(SUFFIXES)}), or a folder of them for each class; "
            f"got none, and {len(others)} other files, in path={str(folder)!r}; add some, as in cat/1.png and dog/1.png"
        )
    skipped = count_by_suffix(others, "no image that can be read, by its suffix")
    return images, tuple(map(displayed, sorted(class_names))), skipped


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _split_folders(folder: Path) -> dict[Split, Path]:
    """The folder of each split; a folder without splits is all training data."""
    entries = visible_entries(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    named = [
        (SPLIT_NAMES[entry.name.lower()], entry) for entry in folders if entry.name.lower() in SPLIT_NAMES
    ]
    train = next((entry for split, entry in named if split == "train"), None)
    train_has_classes = train is not None and any(entry.is_dir() for entry in visible_entries(train))
    # Beside other folders "train" is a class, unless there are classes in it.
    if not named or (len(named) < len(folders) and not train_has_classes):
        return {"train": folder}

    beside = [entry.name for entry in entries if entry.is_dir() or _is_image(entry)]
    parts = dict(named)
    if train is None or len(parts) < len(named) or len(beside) > len(named):
        raise ValueError(
            "the folders of a data set that is already split must be train, perhaps validation (or val, or valid) and "
            f"perhaps test, with nothing beside them; got {list_problems(beside)}\nin path={str(folder)!r}; "
            "rename them, or move the others away"
        )
    return parts


def _class_folders(folder: Path) -> tuple[list[str], list[tuple[str, Path]]]:
    """The classes in the folder of a split, and every file with its class."""
    entries = visible_entries(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    loose = [(UNLABELLED, entry) for entry in entries if not entry.is_dir()]
    if not classes:
        return [UNLABELLED], loose
    if images := [file.name for _, file in loose if _is_image(file)]:
        raise ValueError(
            f"every image must be in the folder of a class where there are such folders; got {list_problems(images)}\n"
            f"beside {len(classes)} folders in path={str(folder)!r}; move the images into a folder, or away"
        )
    files = [(entry.name, file) for entry in classes for file in visible_entries(entry)]
    if nested := [f"{file.parent.name}/{file.name}" for _, file in files if file.is_dir()]:
        raise ValueError(
            f"the folder of a class must hold images and no folders; got {list_problems(nested)}\n"
            f"in path={str(folder)!r}; move the images one level up, "
            "or, if these are splits, call them train, validation and test"
        )
    return [entry.name for entry in classes], loose + files
