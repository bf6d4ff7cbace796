"""The user's own images with captions, as listed in a JSONL, CSV or Parquet file.

Every line has an `image`, the path of an image relative to the file, and a `caption`; several lines may be about the
same image. A column `split` (train, validation or test) is optional; what it does not name is taken out of the
training data by the path of the image (`splitting.py`), so that all captions of an image are on the same side.
`image_files.py` says how images become squares.

Memory: everything is held as bytes, captions · size² · channels of them (1 channel if all images are stored as grey,
otherwise 3), for instance 1.1 GiB for 100,000 captions of coloured images at 64 × 64. An image is decoded once, but
held once for each of its captions; where there are several, once more for a moment.
"""

import codecs
import csv
import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxmodels.checks import require_integer
from jaxmodels.data.datasets import CaptionedImages, CaptionedSplits
from jaxmodels.data.readers.image_files import read_images, same_channels, unreadable_error
from jaxmodels.data.readers.paths import existing_path, list_problems, naming_damage, naming_permission
from jaxmodels.data.readers.splitting import SPLIT_NAMES, SPLITS, Split, choose_split, require_examples


COLUMNS = ("image", "caption")


@dataclass(frozen=True, kw_only=True)
class Row:
    """An image and a caption of it."""

    where: str  # in the file, for messages
    image: str  # relative to the file, in its shortest form
    caption: str
    split: Split | None


def captioned_images(
    path: str | os.PathLike[str],
    *,
    size: int,
    longest: int,
    skip_unreadable: bool = False,
    skip_long: bool = False,
) -> CaptionedSplits:
    """Reads images and their captions, each image as the middle of it, `size` × `size`.

    Args:
        path: a file that ends in `.jsonl`, `.csv` (comma-separated, with a header) or `.parquet`.
        size: height and width in pixels.
        longest: how many bytes of UTF-8 a caption may have.
        skip_unreadable: leave out images that are missing or cannot be read, and list them in `skipped`,
            instead of an error.
        skip_long: the same for captions that are too long.

    Raises:
        ValueError: lines or columns that are not as above, captions that are too long, unreadable images, a
            damaged file, a split without examples.
        FileNotFoundError: `path` leads nowhere.
        PermissionError: the file may not be read.
        ModuleNotFoundError: a Parquet file, but pyarrow is not installed.
    """
    size = require_integer("size", size, minimum=1)
    longest = require_integer("longest", longest, minimum=1)
    file = existing_path(path)
    rows = _rows(file)
    too_long = [
        f"{row.where}: {count} bytes, {row.caption[:40]!r}…"
        for row in rows
        if (count := len(row.caption.encode())) > longest
    ]
    if too_long and not skip_long:
        raise ValueError(
            f"captions must have at most longest={longest} bytes of UTF-8; got {len(too_long)} of {len(rows)} in "
            f"path={str(file)!r} which have more:{list_problems(too_long)}\n"
            "shorten them, train a model for longer texts, or leave them out with skip_long=True (--skip-long)"
        )
    rows = [row for row in rows if len(row.caption.encode()) <= longest]
    splits, unread = _decoded(file, rows, size)
    if unread and not skip_unreadable:
        raise unreadable_error(file, unread, len({row.image for row in rows}))
    require_examples(file, splits, "captions", "add images, or split them yourself with a column split")
    return CaptionedSplits(source=str(file), skipped=(*too_long, *unread), **splits)


def _decoded(file: Path, rows: Sequence[Row], size: int) -> tuple[dict[Split, CaptionedImages], list[str]]:
    """The splits, with the captions whose images can be read, and what is wrong with the other images."""
    images, captions, problems = {}, {}, []
    for split in SPLITS:
        part = [row for row in rows if row.split == split]
        names = list(dict.fromkeys(row.image for row in part))
        decoded, reasons = read_images([file.parent / name for name in names], size=size)
        problems += [
            f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True) if reason is not None
        ]
        readable = [name for name, reason in zip(names, reasons, strict=True) if reason is None]
        place = {name: index for index, name in enumerate(readable)}
        part = [row for row in part if row.image in place]
        captions[split] = tuple(row.caption for row in part)
        # With one caption each, the images are in place already.
        images[split] = decoded if len(part) == len(readable) else decoded[[place[row.image] for row in part]]
    images = same_channels(images)
    return {
        split: CaptionedImages(images=images[split], captions=captions[split]) for split in SPLITS
    }, problems


def _rows(file: Path) -> list[Row]:
    """The lines of a file in their order, each with its split."""
    rows: list[Row] = []
    problems: list[str] = []
    for where, record in _records(file):
        problem = _problem(record)
        if problem is None:
            split = record.get("split")
            rows.append(
                Row(
                    where=where,
                    image=posixpath.normpath(record["image"]),
                    caption=record["caption"],
                    split=SPLIT_NAMES[split.lower()] if split else None,
                )
            )
        else:
            problems.append(f"{where}: {problem}")
    if problems:
        raise _wrong_lines(file, problems)
    return _with_splits(file, rows)


def _problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a line, if anything is."""
    for column in COLUMNS:
        if column not in record:
            return f"there is no {column}, only {', '.join(map(str, record)) or 'nothing'}"
        value = record[column]
        if not isinstance(value, str) or not value.strip():
            return f"{column} must be a text and not empty; got {value!r:.60}"
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"{column} must be valid Unicode ({error.reason}); got {value!r:.60}"
    split = record.get("split")
    if split and (not isinstance(split, str) or split.lower() not in SPLIT_NAMES):
        return f"split must be one of {', '.join(SPLIT_NAMES)}; got {split!r:.60}"
    return None


def _with_splits(file: Path, rows: Sequence[Row]) -> list[Row]:
    """Fills in the splits that the file does not name; an image must be in one of them only."""
    given = {row.split for row in rows if row.split is not None}
    problems = [f"{row.where}: there is no split" for row in rows if given and row.split is None]
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.image, row)
        if other.split != row.split:
            problems.append(
                f"{row.where}: {row.image} is in {row.split}, but in {other.split} at {other.where}"
            )
    if problems:
        raise _wrong_lines(file, problems)
    return [
        replace(row, split=choose_split(row.image, given)) if row.split in (None, "train") else row
        for row in rows
    ]


def _wrong_lines(file: Path, problems: Sequence[str]) -> ValueError:
    return ValueError(
        "every line must have an image, a caption and, if any has one, a split that is the same for all captions of a "
        f"image; got {len(problems)} in path={str(file)!r} which are wrong:{list_problems(problems)}\n"
        "repair or remove them"
    )


def _records(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """What is in the file, and where in it."""
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}.get(file.suffix.lower())
    if reader is None or file.is_dir():
        raise ValueError(
            "path must be a .jsonl, .csv or .parquet file with the columns image and caption; "
            f"got path={str(file)!r}; write such a file, with paths of images relative to it"
        )
    records = reader(file)
    if not records:
        raise ValueError(f"the file must have lines; got path={str(file)!r} without any; fill it")
    return records


def _jsonl(file: Path) -> list[tuple[str, dict[str, Any]]]:
    records: list[tuple[str, dict[str, Any]]] = []
    problems: list[str] = []
    with naming_permission(file):
        content = file.read_bytes()
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: {error}")
            continue
        if isinstance(record, dict):
            records.append((f"line {number}", record))
        else:
            problems.append(f"line {number}: {record!r:.60} is no object with names and values")
    if problems:
        raise ValueError(
            f"every line must be a JSON object in UTF-8; got {len(problems)} in path={str(file)!r} which are not:"
            f"{list_problems(problems)}\nrepair or remove them"
        )
    return records


def _csv(file: Path) -> list[tuple[str, dict[str, Any]]]:
    records: list[tuple[str, dict[str, Any]]] = []
    with naming_damage(file, "CSV file in UTF-8"), file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            columns = reader.fieldnames or ()
            for record in reader:
                records.append((f"line {reader.line_num}", record))
        except csv.Error as error:
            raise ValueError(f"after line {reader.line_num}: {error}") from error
    _require_columns(file, columns)
    # A field too many is filed under None by the reader, one too few has the value None.
    torn = [
        f"{where}: {list(record.values())!r:.100}"
        for where, record in records
        if None in record or None in record.values()
    ]
    if torn:
        raise ValueError(
            f"every line must have {len(columns)} fields, as the first; got {len(torn)} in path={str(file)!r} "
            f"which have not:{list_problems(torn)}\n"
            'put captions that contain a comma into quotation marks: "a cat, asleep"'
        )
    return records


def _parquet(file: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a Parquet file is read with pyarrow; got path={str(file)!r} and no pyarrow; "
            "pip install 'jaxmodels[parquet]', or write the table as .csv or .jsonl"
        ) from error
    kind = "Parquet file"
    with naming_damage(file, kind), file.open("rb") as stream:
        table = ParquetFile(stream)
        columns = table.schema_arrow.names
        present = [column for column in (*COLUMNS, "split") if column in columns]
        records = table.read(columns=present).to_pylist()
    _require_columns(file, columns)
    return [(f"row {number}", record) for number, record in enumerate(records, start=1)]


def _require_columns(file: Path, columns: Sequence[str]) -> None:
    if missing := [column for column in COLUMNS if column not in columns]:
        raise ValueError(
            f"there must be the columns image and caption; got columns={list(columns)}, without "
            f"{' and '.join(missing)}, in path={str(file)!r}; rename them (in a .csv, commas separate the columns)"
        )
