"""Images as arrays: `.npz` files, and folders in the IDX format of MNIST.

An `.npz` file holds unsigned bytes with the axes n height width, or n height width channels, and perhaps their classes,
integers, under these names:

| split | images, under one of | classes, under one of |
| --- | --- | --- |
| train | images, data, x_train, train_images | labels, y_train, train_labels |
| validation (may be missing) | x_val, val_images, validation_images | y_val, val_labels, validation_labels |
| test (may be missing) | x_test, test_images | y_test, test_labels |

A folder in the IDX format holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, and the test data with `t10k`
or `test` in place of `train`; each may be compressed (`.gz`). Fashion-MNIST's folder is one.

A folder of `.npz` files called `train_data_batch_1.npz`, `val_data.npz` and so on holds a data set in parts, as
downsampled ImageNet is distributed: rows of red, then green, then blue, and labels.

What is not there is taken out of the training data, by the number of the image (`splitting.py`).
"""

import gzip
import math
import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Integer, UInt8

from jaxmodels.data.readers.paths import count_by_suffix, naming_damage, naming_permission, visible_entries
from jaxmodels.data.readers.splitting import SPLIT_NAMES, SPLITS, Split, choose_split


IMAGES: dict[Split, tuple[str, ...]] = {
    "train": ("images", "data", "x_train", "train_images"),
    "validation": ("x_val", "val_images", "validation_images"),
    "test": ("x_test", "test_images"),
}
LABELS: dict[Split, tuple[str, ...]] = {
    "train": ("labels", "y_train", "train_labels"),
    "validation": ("y_val", "val_labels", "validation_labels"),
    "test": ("y_test", "test_labels"),
}

IDX_NAME = re.compile(r"(?:.*-)?(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(?:\.gz)?", re.IGNORECASE)
BATCH_NAME = re.compile(
    r"(train|validation|valid|val|test)(?:_data)?(?:_batch)?(?:_(\d+))?\.npz", re.IGNORECASE
)
ANY_COMPRESSION_BELOW = 256 * 2**20  # bytes; what is below may be compressed as much as it likes
MOST_COMPRESSION = 100
UNSIGNED_BYTES = b"\0\0\x08"  # what an IDX file of bytes begins with; the number of axes follows


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrays:
    """The images of a split, as they are stored, and their classes, if there are any."""

    images: UInt8[np.ndarray, "n ..."]
    labels: Integer[np.ndarray, " n"] | None

    def __len__(self) -> int:
        return len(self.images)


def holds_arrays(path: Path) -> bool:
    """Whether `read_arrays` is the reader for this path."""
    if path.is_dir():
        names = [entry.name for entry in visible_entries(path)]
        return any(IDX_NAME.fullmatch(name) or BATCH_NAME.fullmatch(name) for name in names)
    return path.suffix.lower() == ".npz"


def read_arrays(path: Path) -> tuple[dict[Split, Arrays], tuple[str, ...]]:
    """The three splits of an `.npz` file, or of a folder of IDX files or batches, and what was left out.

    Raises:
        ValueError: a damaged file, or arrays that are no images or do not fit one another.
        PermissionError: a file may not be read.
    """
    if not path.is_dir():
        arrays, skipped = _read_npz(path)
    elif any(IDX_NAME.fullmatch(entry.name) for entry in visible_entries(path)):
        arrays, skipped = _read_idx_folder(path)
    else:
        arrays, skipped = _read_batches(path)
    for split, part in arrays.items():
        _check(path, split, part)
    with_labels = [split for split, part in arrays.items() if part.labels is not None]
    if with_labels and len(with_labels) < len(arrays):
        raise ValueError(
            f"every split must have labels, or none; got labels for {', '.join(with_labels)} and images for "
            f"{', '.join(arrays)} in path={str(path)!r}; add the other labels"
        )
    return _complete(arrays), skipped


def _complete(arrays: dict[Split, Arrays]) -> dict[Split, Arrays]:
    """Takes the missing splits out of the training data."""
    if len(arrays) == len(SPLITS):
        return arrays
    train = arrays["train"]
    splits = np.array([choose_split(str(index), arrays) for index in range(len(train))])
    taken: dict[Split, Arrays] = {
        split: Arrays(
            images=train.images[splits == split],
            labels=None if train.labels is None else train.labels[splits == split],
        )
        for split in SPLITS
        if split == "train" or split not in arrays
    }
    return {**arrays, **taken}


def _check(path: Path, split: Split, part: Arrays) -> None:
    images, labels = part.images, part.labels
    where = f"for {split} in path={str(path)!r}"
    if images.dtype != np.uint8 or images.ndim < 2 or not images.size:
        raise ValueError(
            f"images must be a uint8 array (0 is black, 255 white) whose first axis is the image; got "
            f"dtype={images.dtype}, shape={images.shape} {where}; values between 0 and 1 become such bytes by "
            "(images * 255).round().astype('uint8')"
        )
    if labels is None:
        return
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            "labels must be an array of integers, one for each image; got "
            f"dtype={labels.dtype}, shape={labels.shape} {where}; number the classes from 0"
        )
    if len(labels) != len(images):
        raise ValueError(
            f"there must be as many labels as images; got {len(labels)} labels and {len(images)} images {where}; "
            "write the file again"
        )


def _read_npz(path: Path) -> tuple[dict[Split, Arrays], tuple[str, ...]]:
    kind = ".npz file without Python objects"
    with naming_permission(path), path.open("rb") as stream:
        with naming_damage(path, kind):
            if not zipfile.is_zipfile(stream):  # NumPy would advise to run what is in it
                raise ValueError("it is no .npz archive")
            stream.seek(0)
            file = np.load(stream, allow_pickle=False)
            present = list(file.files)
            _refuse_bomb(path, sum(member.file_size for member in file.zip.infolist()))
        chosen = _chosen(path, present)
        with naming_damage(path, kind):
            arrays = {
                split: Arrays(
                    images=np.asarray(file[images]),  # bytes, if it is a file of another kind in the archive
                    labels=None if labels is None else _column(np.asarray(file[labels])),
                )
                for split, (images, labels) in chosen.items()
            }
    others = sorted(set(present) - {name for names in chosen.values() for name in names})
    return arrays, tuple(f"array {name!r}: neither images nor classes by its name" for name in others)


def _read_batches(folder: Path) -> tuple[dict[Split, Arrays], tuple[str, ...]]:
    """A data set in several `.npz` files, in the order of their numbers."""
    entries = visible_entries(folder)
    matches = [(match, file) for file in entries if (match := BATCH_NAME.fullmatch(file.name))]
    parts: dict[Split, list[Arrays]] = {}
    for match, file in sorted(matches, key=lambda found: int(found[0][2] or 0)):
        arrays, _ = _read_npz(file)
        images, labels = _unfolded(arrays["train"].images), arrays["train"].labels
        parts.setdefault(SPLIT_NAMES[match[1].lower()], []).append(Arrays(images=images, labels=labels))
    if "train" not in parts:
        raise ValueError(
            f"the folder must have training data, for instance train_data_batch_1.npz; got "
            f"{', '.join(file.name for _, file in matches)} in path={str(folder)!r}; add it"
        )
    others = [file for file in entries if not BATCH_NAME.fullmatch(file.name)]
    return {
        split: _concatenated(folder, parts[split]) for split in SPLITS if split in parts
    }, count_by_suffix(others, "no batch of a data set by its name")


def _concatenated(folder: Path, parts: Sequence[Arrays]) -> Arrays:
    shapes = sorted({part.images.shape[1:] for part in parts})
    if len(shapes) > 1 or len({part.labels is None for part in parts}) > 1:
        raise ValueError(
            f"all batches of a split must have images of one shape, and all labels or none; got shapes "
            f"{', '.join(map(str, shapes))} in path={str(folder)!r}; move what does not belong there away"
        )
    labels = [part.labels for part in parts if part.labels is not None]
    return Arrays(
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate(labels) if labels else None,
    )


def _unfolded(rows: np.ndarray) -> np.ndarray:
    """Rows of three planes of a square as channels-last images; anything else as it is."""
    side = math.isqrt(rows.shape[-1] // 3) if rows.ndim == 2 else 0
    if rows.ndim != 2 or rows.shape[-1] != 3 * side**2:
        return rows
    return rearrange(rows, "n (c h w) -> n h w c", c=3, h=side)


def _chosen(path: Path, present: list[str]) -> dict[Split, tuple[str, str | None]]:
    """The names of images and classes of every split that is there."""
    chosen: dict[Split, tuple[str, str | None]] = {}
    for split in SPLITS:
        images, labels = _one_of(path, IMAGES[split], present), _one_of(path, LABELS[split], present)
        if images is not None:
            chosen[split] = images, labels
        elif labels is not None or split == "train":
            raise ValueError(
                f"one of the arrays must hold images and be called {' or '.join(IMAGES[split])}; "
                f"got {', '.join(present) or 'none'} in path={str(path)!r}; rename or add it"
            )
    return chosen


def _one_of(path: Path, names: tuple[str, ...], present: list[str]) -> str | None:
    """The one of several possible names which is present."""
    found = [name for name in names if name in present]
    if len(found) > 1:
        raise ValueError(
            f"only one of the arrays {', '.join(names)} may be there; got {' and '.join(found)} in path={str(path)!r}; "
            "rename or remove the others"
        )
    return found[0] if found else None


def _column(labels: np.ndarray) -> np.ndarray:
    """Many files have their labels in one column of a table."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _read_idx_folder(folder: Path) -> tuple[dict[Split, Arrays], tuple[str, ...]]:
    found, others = _idx_files(folder)
    arrays: dict[Split, Arrays] = {}
    for split in ("train", "test"):
        images, labels = found.get((split, "images")), found.get((split, "labels"))
        if images is not None:
            arrays[split] = Arrays(
                images=read_idx(images), labels=None if labels is None else read_idx(labels)
            )
        elif split == "train" or labels is not None:
            raise ValueError(
                f"the folder must have the {split} images, for instance train-images-idx3-ubyte.gz or "
                f"t10k-images-idx3-ubyte.gz; got {', '.join(file.name for file in found.values())} in "
                f"path={str(folder)!r}; add them"
            )
    return arrays, count_by_suffix(others, "no file in the IDX format by its name")


def _idx_files(folder: Path) -> tuple[dict[tuple[Split, str], Path], list[Path]]:
    """Files by split and content, and the others; where a file is there twice, that which is not compressed."""
    found: dict[tuple[Split, str], Path] = {}
    others: list[Path] = []
    for file in visible_entries(folder):
        match = IDX_NAME.fullmatch(file.name)
        if match is None:
            others.append(file)
            continue
        key: tuple[Split, str] = ("train" if match[1].lower() == "train" else "test", match[2].lower())
        previous = found.setdefault(key, file)  # x sorts before x.gz
        if previous.name != file.name.removesuffix(".gz") and previous != file:
            raise ValueError(
                f"the folder must have one file with the {key[0]} {key[1]}; got {previous.name} and {file.name} in "
                f"path={str(folder)!r}; put every data set into a folder of its own"
            )
    return found, others


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file."""
    limit = max(ANY_COMPRESSION_BELOW, MOST_COMPRESSION * path.stat().st_size)
    with path.open("rb") as packed, gzip.open(packed) as stream:
        content = stream.read(limit + 1)
    _refuse_bomb(path, len(content))
    return content


def _refuse_bomb(path: Path, unpacked: int) -> None:
    """ValueError if a small file would become a very large one, as no images do."""
    if unpacked > max(ANY_COMPRESSION_BELOW, MOST_COMPRESSION * path.stat().st_size):
        raise ValueError(f"its {path.stat().st_size:,} bytes would become {unpacked:,} or more")


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes: type, number of axes, big-endian sizes, values.

    Raises:
        ValueError: not such a file, or more or fewer values than its header says.
        PermissionError: it may not be read.
    """
    with naming_damage(path, "IDX file"):
        if not path.is_file():
            raise ValueError("it is not a regular file")
        content = _unpacked(path) if path.suffix.lower() == ".gz" else path.read_bytes()
        if content[:3] != UNSIGNED_BYTES or len(content) < 8:
            raise ValueError(
                f"it begins with {content[:4]!r} instead of {UNSIGNED_BYTES!r} and the number of axes"
            )
        start = 4 + 4 * content[3]
        shape = struct.unpack(f">{content[3]}I", content[4:start])
        if math.prod(shape) != len(content) - start:
            raise ValueError(f"its header says shape={shape}, but {len(content) - start} values follow")
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
