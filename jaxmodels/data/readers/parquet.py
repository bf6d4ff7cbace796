"""Tables in Parquet, with images inside or beside them, as Hugging Face's data sets store them.

A file, or a folder of files whose names begin with their split, such as `train-00000-of-00002.parquet`; they may be in
a folder `data` inside it. An image is a struct of `bytes` and `path`, bytes, or the path of a file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmodels.data.readers.paths import naming_damage, visible_entries
from jaxmodels.data.readers.splitting import SPLIT_NAMES, Split


class EmbeddedImage(NamedTuple):
    """An image file inside a table."""

    content: bytes
    key: str  # equal for equal files

    @classmethod
    def of(cls, content: bytes) -> "EmbeddedImage":
        return cls(content, hashlib.sha256(content).hexdigest())


class Table(NamedTuple):
    """The rows of a file with the columns that were asked for.

    Attributes:
      rows: column -> value. A struct of bytes and path, and bytes, have become an `EmbeddedImage` or a path.
      columns: the names of all columns.
      class_names: column -> names of its classes, which the values number, where the file knows them.
    """

    rows: list[dict[str, Any]]
    columns: list[str]
    class_names: dict[str, list[str]]


def parquet_files(path: Path) -> list[tuple[Split | None, Path]]:
    """The files of a table, each with the split that its name tells; empty where there is no such file."""
    if not path.is_dir():
        return [(None, path)] if path.suffix.lower() == ".parquet" else []
    for folder in (path, path / "data"):
        files = [file for file in visible_entries(folder)] if folder.is_dir() else []
        files = [file for file in files if file.suffix.lower() == ".parquet" and file.is_file()]
        if files:
            return [(SPLIT_NAMES.get(file.stem.partition("-")[0].lower()), file) for file in files]
    return []


def read_table(file: Path, wanted: Sequence[str]) -> Table:
    """Reads those of the wanted columns that a Parquet file has.

    Raises:
      ValueError: the file is damaged, or has a wanted column twice.
      PermissionError: it may not be read.
      ModuleNotFoundError: pyarrow is not installed.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a Parquet file is read with pyarrow; got path={str(file)!r} and no pyarrow; "
            "pip install pyarrow, or write the table as .csv or .jsonl"
        ) from error
    with naming_damage(file, "Parquet file"), file.open("rb") as stream:
        table = ParquetFile(stream)
        columns, metadata = table.schema_arrow.names, table.schema_arrow.metadata or {}
    require_unique(columns, wanted, where=f" in path={str(file)!r}")
    with naming_damage(file, "Parquet file"), file.open("rb") as stream:
        table = ParquetFile(stream)
        rows = table.read(columns=[column for column in wanted if column in columns]).to_pylist()
        rows = [{column: _image(value) for column, value in row.items()} for row in rows]
    return Table(rows, columns, _class_names(metadata.get(b"huggingface", b"{}")))


def require_unique(names: Sequence[str], wanted: Sequence[str], *, where: str = "") -> None:
    """ValueError if one of the wanted names is there twice: it would be a guess which one counts."""
    if twice := [name for name in wanted if list(names).count(name) > 1]:
        raise ValueError(
            f"{' and '.join(twice)} must be there once; got {list(names)}{where}; rename or remove one"
        )


def _image(value: Any) -> Any:
    """An image that is in the table, or its path; any other value as it is."""
    if isinstance(value, Mapping) and "bytes" in value:
        value = value["bytes"] if value["bytes"] is not None else value.get("path")
    return EmbeddedImage.of(value) if isinstance(value, bytes) and value else value


def _class_names(metadata: bytes) -> dict[str, list[str]]:
    """The names that Hugging Face's library keeps of the classes of a column."""
    try:
        features = json.loads(metadata)["info"]["features"]
        return {
            column: list(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, Mapping) and isinstance(feature.get("names"), list)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
