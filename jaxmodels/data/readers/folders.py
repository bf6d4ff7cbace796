"""Folders of pictures: one folder for each class, or none, and perhaps a folder for each split above them.

| what is there | is read as |
| --- | --- |
| `cat/1.png`, `dog/1.png` | classes |
| `train/cat/1.png`, `validation/cat/2.png`, `test/cat/3.png` | classes, already split |
| `1.png`, `2.png` | pictures without classes |
| `train/1.png`, `test/2.png` | pictures without classes, already split |

`train` must be there for the names of splits to count; `validation` may be called `val` or `valid`, and it or `test`
may be missing. Hidden files are passed over; other files that are no pictures by their suffix are left out and told.
"""

from pathlib import Path
from typing import NamedTuple

from jaxmodels.data.readers.image_files import SUFFIXES
from jaxmodels.data.readers.paths import by_suffix, listed, visible
from jaxmodels.data.readers.splitting import SPLIT_NAMES, Split, held_out


UNLABELLED = "unlabelled"  # the one class of pictures without classes


class Picture(NamedTuple):
    """A file and what its place in the folder says about it."""

    path: Path
    class_name: str
    split: Split


def read_folder(folder: Path) -> tuple[list[Picture], tuple[str, ...], tuple[str, ...]]:
    """Pictures, the names of all classes, and what was left out; no picture is opened.

    Raises:
        ValueError: no pictures, or a layout from which classes and splits do not follow.
        PermissionError: a folder may not be read.
    """
    parts = _split_folders(folder)
    class_names: set[str] = set()
    pictures: list[Picture] = []
    others: list[Path] = []
    for split, part in parts.items():
        names, files = _class_folders(part)
        class_names.update(names)
        for name, file in files:
            if not _is_picture(file):
                others.append(file)
                continue
            key = file.relative_to(folder).as_posix()
            pictures.append(Picture(file, name, held_out(key, parts) if split == "train" else split))
    if not pictures:
        raise ValueError(
            f"the folder must hold pictures ({', '.join(SUFFIXES)}), or a folder of them for each class; "
            f"got none, and {len(others)} other files, in path={str(folder)!r}; add some, as in cat/1.png and dog/1.png"
        )
    skipped = by_suffix(others, "no picture that can be read, by its suffix")
    return pictures, tuple(sorted(class_names)), skipped


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _split_folders(folder: Path) -> dict[Split, Path]:
    """The folder of each split; a folder without splits is all training data."""
    entries = visible(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    named = [
        (SPLIT_NAMES[entry.name.lower()], entry) for entry in folders if entry.name.lower() in SPLIT_NAMES
    ]
    train = next((entry for split, entry in named if split == "train"), None)
    train_has_classes = train is not None and any(entry.is_dir() for entry in visible(train))
    # Beside other folders "train" is a class, unless there are classes in it.
    if not named or (len(named) < len(folders) and not train_has_classes):
        return {"train": folder}

    beside = [entry.name for entry in entries if entry.is_dir() or _is_picture(entry)]
    parts = dict(named)
    if train is None or len(parts) < len(named) or len(beside) > len(named):
        raise ValueError(
            "the folders of a data set that is already split must be train, perhaps validation (or val, or valid) and "
            f"perhaps test, with nothing beside them; got {listed(beside)}\nin path={str(folder)!r}; "
            "rename them, or move the others away"
        )
    return parts


def _class_folders(folder: Path) -> tuple[list[str], list[tuple[str, Path]]]:
    """The classes in the folder of a split, and every file with its class."""
    entries = visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    loose = [(UNLABELLED, entry) for entry in entries if not entry.is_dir()]
    if not classes:
        return [UNLABELLED], loose
    if pictures := [file.name for _, file in loose if _is_picture(file)]:
        raise ValueError(
            f"every picture must be in the folder of a class where there are such folders; got {listed(pictures)}\n"
            f"beside {len(classes)} folders in path={str(folder)!r}; move the pictures into a folder, or away"
        )
    files = [(entry.name, file) for entry in classes for file in visible(entry)]
    if nested := [f"{file.parent.name}/{file.name}" for _, file in files if file.is_dir()]:
        raise ValueError(
            f"the folder of a class must hold pictures and no folders; got {listed(nested)}\nin path={str(folder)!r}; "
            "move the pictures one level up, or, if these are splits, call them train, validation and test"
        )
    return [entry.name for entry in classes], loose + files
