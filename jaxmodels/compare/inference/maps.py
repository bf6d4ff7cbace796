"""A table as a file that people edit: what inference found, and what it could not decide."""

import os
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmodels.atomic import atomic_write
from jaxmodels.convert.table import Added, Derived, Entry, Parameter, Tied, Twin


HEADER = """\
# Which PyTorch parameter is which variable of the JAX model; read by `jaxmodels compare PAIR --map FILE`.
# `theirs` is a name of PyTorch, `ours` a path in the JAX model, `axes` an einops pattern from their axes to ours.
# To settle an [[undecided]] entry, write [[parameter]] entries and delete it.
"""
KINDS: dict[str, Any] = {"parameter": Parameter, "added": Added, "tied": Tied, "twin": Twin}
# The fields that a file may have; all others are computed.
FIELDS = {
    "parameter": ("theirs", "ours", "axes", "flip", "part", "block", "sizes"),
    "added": ("theirs", "to", "blocks"),
    "tied": ("theirs", "to"),
    "twin": ("theirs", "ours", "axes", "output_axes"),
}
UNDECIDED = "undecided"


class Undecided(NamedTuple):
    """What inference could not decide.

    Attributes:
      ours: paths of variables of the JAX model.
      theirs: keys of PyTorch, among which theirs may be.
      reason: why they could not be told apart, or paired at all.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        sides = [", ".join(side) or "nothing" for side in (self.ours, self.theirs)]
        return f"{sides[0]} in JAX and {sides[1]} in PyTorch: {self.reason}"


def write_map(path: str | os.PathLike, table: Iterable[Entry], ambiguous: Sequence[Undecided] = ()) -> None:
    """Writes a table to a TOML file, with what is undecided at its end.

    Raises:
      ValueError: the table has an entry that is computed, which a file cannot hold.
    """
    lines = [HEADER]
    for entry in table:
        if isinstance(entry, Derived) or (isinstance(entry, Parameter) and entry.expected is not None):
            raise ValueError(f"{entry.theirs} is computed from the model, which a map cannot say")
        kind = next(name for name, cls in KINDS.items() if isinstance(entry, cls))
        lines += _section(
            kind, {name: getattr(entry, name) for name in FIELDS[kind]}, type(entry)._field_defaults
        )
    for one in ambiguous:
        lines += _section(UNDECIDED, one._asdict(), {})
    with atomic_write(Path(path)) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def read_map(path: str | os.PathLike) -> tuple[Entry, ...]:
    """The table of a file that `write_map` wrote and somebody may have edited.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no TOML, has unknown or missing fields, or something is still undecided.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a TOML file: {error}") from error
    if unknown := sorted(content.keys() - KINDS.keys() - {UNDECIDED}):
        raise ValueError(
            f"{path} must hold only {', '.join(KINDS)} and {UNDECIDED}; it has {', '.join(unknown)}"
        )
    if left := content.get(UNDECIDED):
        listed = "".join(f"\n  {', '.join(map(str, one.get('ours', ())))}" for one in left)
        raise ValueError(
            f"{path} still has {len(left)} [[{UNDECIDED}]] entries: write a [[parameter]] for each variable and "
            f"delete them{listed}"
        )
    return tuple(_entry(path, kind, fields) for kind in KINDS for fields in content.get(kind, ()))


def _entry(path: str | os.PathLike, kind: str, fields: Any) -> Entry:
    needed = {name for name in FIELDS[kind] if name not in KINDS[kind]._field_defaults}
    if not isinstance(fields, dict) or not needed <= fields.keys() <= set(FIELDS[kind]):
        raise ValueError(
            f"{path}: each [[{kind}]] must have {' and '.join(sorted(needed))} and may have the others of "
            f"{', '.join(FIELDS[kind])}; got {fields}"
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    if isinstance(sizes := values.get("sizes"), dict):
        values["sizes"] = tuple(sizes.items())
    if kind == "twin" and "axes" not in values:
        values["axes"] = None
    return KINDS[kind](**values)


def _section(kind: str, fields: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    lines = [f"[[{kind}]]"]
    for name, value in fields.items():
        if value is None or (name in defaults and value == defaults[name] and kind != "twin"):
            continue
        if name == "sizes":
            value = "{ " + ", ".join(f"{axis} = {size}" for axis, size in value) + " }"
        elif isinstance(value, tuple):
            value = "[" + ", ".join(_literal(one) for one in value) + "]"
        else:
            value = _literal(value)
        lines.append(f"{name} = {value}")
    return [*lines, ""]


def _literal(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
