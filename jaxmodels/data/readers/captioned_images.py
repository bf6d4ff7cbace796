"""The user's own images with captions, as listed in a JSONL, CSV or Parquet file.

Every line has an `image` and a `caption`. The image is a path, relative to the file or absolute; several lines may be
about the same image. In Parquet the image itself may be in the table, and a folder may hold several such files
(`parquet.py`).

A column `split` (train, validation or test) is optional. Validation and test data that it does not name are taken out
of the training data by the path of the image (`splitting.py`): all captions of an image are in the same split.
`image_files.py` says how images become squares.

Memory: everything is held as bytes, captions · size² · channels of them, with 1 channel if all images are stored as
grey and 3 otherwise: 1.1 GiB for 100,000 captions of coloured images at 64 × 64. An image is decoded once, but held
once for each of its captions; where there are several, once more for a moment.
"""

import codecs
import csv
import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxmodels.checks import require_integer
from jaxmodels.data.datasets import CaptionedImages, CaptionedSplits
from jaxmodels.data.readers.image_files import NO_SUCH_FILE, read_images, same_channels, unreadable_error
from jaxmodels.data.readers.parquet import EmbeddedImage, parquet_files, read_table, require_unique
from jaxmodels.data.readers.paths import existing_path, list_problems, naming_damage, naming_permission
from jaxmodels.data.readers.splitting import SPLIT_NAMES, SPLITS, Split, choose_split, require_examples


COLUMNS = ("image", "caption")


@dataclass(frozen=True, kw_only=True)
class Row:
    """An image and a caption of it."""

    where: str  # in the file, for messages
    image: str  # its path in the shortest form, or what identifies an image inside the table
    caption: str
    split: Split | None
    content: bytes | None = None  # of an image inside the table


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
        path: a file that ends in `.jsonl`, `.csv` (comma-separated, with a header) or `.parquet`, or a folder of
            Parquet files whose names begin with their split.
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
        first = {row.image: row for row in reversed(part)}
        names = list(dict.fromkeys(row.image for row in part))
        sources = [_source(file, first[name]) for name in names]
        decoded, reasons = read_images(sources, size=size)
        problems += [
            f"{name if first[name].content is None else first[name].where}: {_with_hint(name, reason)}"
            for name, reason in zip(names, reasons, strict=True)
            if reason is not None
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


def _source(file: Path, row: Row) -> Path | bytes:
    """Where the image of a row is."""
    if row.content is not None:
        return row.content
    folder = file if file.is_dir() else file.parent
    path = folder / row.image
    other = folder / row.image.replace("\\", "/")  # a list that was written on Windows
    return other if not os.path.exists(path) and os.path.exists(other) else path  # Path raises on long names


def _with_hint(name: str, reason: str) -> str:
    if reason == NO_SUCH_FILE and re.match(r"https?:/", name):
        return "images must be files, not addresses; download them first"
    if "\\" in name and reason == NO_SUCH_FILE:
        return f"{reason}; nor is there one with / in place of \\"
    return reason


def _rows(file: Path) -> list[Row]:
    """The lines of a file in their order, each with its split."""
    rows: list[Row] = []
    problems: list[str] = []
    for where, record in _records(file):
        problem = _problem(record)
        if problem is None:
            split, image = record.get("split"), record["image"]
            embedded = isinstance(image, EmbeddedImage)
            rows.append(
                Row(
                    where=where,
                    image=image.key if embedded else posixpath.normpath(image),
                    caption=record["caption"],
                    split=SPLIT_NAMES[split.lower()] if split else None,
                    content=image.content if embedded else None,
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
        if column == "image" and isinstance(value, EmbeddedImage):
            continue
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
    reader = {".jsonl": _jsonl, ".csv": _csv}.get(file.suffix.lower())
    if tables := parquet_files(file):
        records = [record for split, table in tables for record in _parquet(table, split)]
    elif reader is not None and file.is_file():
        records = reader(file)
    else:
        raise ValueError(
            "path must be a .jsonl, .csv or .parquet file with the columns image and caption, or a folder of Parquet "
            f"files; got path={str(file)!r}; write such a file, with paths of images relative to it"
        )
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
            record = json.loads(line.decode(), object_pairs_hook=_object)
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require_unique([key for key, _ in pairs], (*COLUMNS, "split"))
    return dict(pairs)


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
    require_unique(columns, (*COLUMNS, "split"), where=f" in path={str(file)!r}")
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


def _parquet(file: Path, split: Split | None) -> list[tuple[str, dict[str, Any]]]:
    table = read_table(file, (*COLUMNS, "split"))
    _require_columns(file, table.columns)
    where = "row {}" if split is None else f"{file.name}, row {{}}"
    named = {} if split is None else {"split": split}
    return [(where.format(number), named | row) for number, row in enumerate(table.rows, start=1)]


def _require_columns(file: Path, columns: Sequence[str]) -> None:
    if missing := [column for column in COLUMNS if column not in columns]:
        raise ValueError(
            f"there must be the columns image and caption; got columns={list(columns)}, without "
            f"{' and '.join(missing)}, in path={str(file)!r}; rename them (in a .csv, commas separate the columns)"
        )
