"""The user's own text, as bytes: a file, a folder of files, or images read as records of bytes.

A single file may have any suffix and hold any bytes. In a folder, and in the folders inside it, files with one of the
suffixes below count, sorted by their path, with an empty line between one and the next.

The last 5 % of the bytes are test data and the 5 % before them validation data, as for enwik8; where a line begins
shortly before, the cut is there. A folder that holds `train`, a text file or a folder, is already split: `validation`
(or `valid`, or `val`) and `test` beside it are the others, and one that is missing is cut off `train`.

Memory: everything is held as bytes, about twice the size of the files while they are read.
"""

import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from jaxmodels.data.datasets import TextSplits
from jaxmodels.data.readers.arrays import holds_arrays, read_arrays
from jaxmodels.data.readers.paths import (
    count_by_suffix,
    existing_path,
    list_problems,
    naming_permission,
    visible_entries,
)
from jaxmodels.data.readers.splitting import SPLIT_NAMES, SPLITS, Split, require_examples


SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex", ".org", ".html", ".xml", ".csv", ".json", ".jsonl", ".py")
PACKED = (".gz", ".xz", ".bz2", ".zst", ".zip", ".7z", ".tar", ".tgz", ".parquet", ".pdf")
LINE_SEARCH_BYTES = 1024  # bytes in which a line break is looked for


def texts(path: str | os.PathLike[str]) -> TextSplits:
    """Reads bytes in their order and holds the last ones back.

    Args:
        path: a file, a folder with text files, or images – an `.npz` file or a folder in the IDX format – whose
            bytes are records of one length, `row`, in the order in which the array has them.

    Raises:
        ValueError: nothing to read, an empty file, a split without bytes, a file that must be unpacked first,
            damaged arrays.
        FileNotFoundError: `path` leads nowhere.
        PermissionError: a file or folder may not be read.
    """
    found = existing_path(path)
    if holds_arrays(found):
        return _records(found)
    if found.suffix.lower() in PACKED and found.is_file():
        raise ValueError(
            f"path must be text; got path={str(found)!r}, which holds it packed; unpack it first"
        )
    parts, others, endless = _parts(found)
    splits = _cut(parts)
    require_examples(
        found, splits, "bytes", "give longer texts, or files train.txt, validation.txt and test.txt"
    )
    return TextSplits(
        source=str(found),
        skipped=count_by_suffix(others, "not read as text, by name or suffix")
        + count_by_suffix(endless, "not a regular file"),
        **splits,
    )


def _records(path: Path) -> TextSplits:
    """Images as one text: the bytes of the first, of the second, and so on."""
    arrays, skipped = read_arrays(path)
    sizes = {split: math.prod(part.images.shape[1:]) for split, part in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"all images must have the same number of bytes; got {sizes} in path={str(path)!r}; make them one size"
        )
    splits = {split: part.images.tobytes() for split, part in arrays.items()}
    require_examples(path, splits, "bytes", "give more images, or arrays x_train, x_val and x_test")
    return TextSplits(source=str(path), row=sizes["train"], skipped=skipped, **splits)


def _parts(path: Path) -> tuple[dict[Split, bytes], list[Path], list[Path]]:
    """The text of every split that is there, all of it training data if there is none.

    Also the files that are no text by their suffix, and those that are no regular files.
    """
    if path.is_file():
        return {"train": _joined(path, [path])}, [], []
    entries = visible_entries(path)
    named: list[tuple[Split, Path]] = [
        (SPLIT_NAMES[name], entry)
        for entry in entries
        if (name := (entry.name if entry.is_dir() else entry.stem).lower()) in SPLIT_NAMES
        and (entry.is_dir() or _is_text(entry))
    ]
    if all(split != "train" for split, _ in named):
        named = [("train", path)]
    elif len(dict(named)) < len(named):
        raise ValueError(
            "there must be one file or folder for each split; got "
            f"{', '.join(entry.name for _, entry in named)} in path={str(path)!r}; remove or rename the others"
        )
    chosen = [entry for _, entry in named]
    others = [] if chosen == [path] else [entry for entry in entries if entry not in chosen]
    parts: dict[Split, bytes] = {}
    endless: list[Path] = []  # links to devices, FIFOs, broken links
    for split, entry in named:
        files = _files(entry) if entry.is_dir() else [entry]
        others += [file for file in files if not _is_text(file)]
        endless += [file for file in files if _is_text(file) and not file.is_file()]
        parts[split] = _joined(entry, [file for file in files if _is_text(file) and file.is_file()])
    return parts, others, endless


def _is_text(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _files(folder: Path) -> list[Path]:
    """All files in a folder and the folders inside it, sorted by their path."""
    files: list[Path] = []
    for entry in visible_entries(folder):
        files += _files(entry) if entry.is_dir() and not entry.is_symlink() else [entry]
    return files


def _joined(path: Path, files: Sequence[Path]) -> bytes:
    """The content of files, with an empty line in between."""
    if not files:
        raise ValueError(
            f"the folder must hold text files ({', '.join(SUFFIXES)}); got path={str(path)!r} without any; "
            "add or rename them, or give a single file, whose suffix does not matter"
        )
    contents: list[bytes] = []
    for file in files:
        with naming_permission(file):
            contents.append(file.read_bytes())
    if empty := [str(file) for file, content in zip(files, contents, strict=True) if not content]:
        raise ValueError(
            f"every file must hold text; got {len(empty)} of {len(files)} in path={str(path)!r} which are empty:"
            f"{list_problems(empty)}\nremove or fill them"
        )
    for index, content in enumerate(contents[:-1]):
        contents[index] = content + (b"\n" if content.endswith(b"\n") else b"\n\n")
    return b"".join(contents)


def _cut(parts: Mapping[Split, bytes]) -> dict[Split, bytes]:
    """Cuts the missing splits off the end of the training data, a twentieth of it each."""
    text = parts["train"]
    held_out = [split for split in SPLITS[1:] if split not in parts]
    twentieths = range(20 - len(held_out), 20)
    cuts = [0, *(_line_start(text, len(text) * twentieth // 20) for twentieth in twentieths), len(text)]
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    return {**parts, **dict(zip(("train", *held_out), pieces, strict=True))}


def _line_start(text: bytes, position: int) -> int:
    """Where the line begins that `position` is in, or `position` itself if that is far."""
    near = min(LINE_SEARCH_BYTES, len(text) // 100)
    return text.rfind(b"\n", position - near, position) + 1 or position
