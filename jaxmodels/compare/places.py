"""Lines of the user's source: where a module is written, and where an error comes from."""

import ast
import inspect
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmodels.compare.calls import PairError
from jaxmodels.compare.divergence import MODEL, Divergence


if TYPE_CHECKING:
    from flax import nnx

    from jaxmodels.convert.table import Twin


OWN = Path(__file__).parent  # wrappers of the comparison itself are no place to look at
INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib"))

MAKING = ("__init__", "setup")  # methods that make layers, and do not call them


class Place(NamedTuple):
    """Lines of a file; the path is relative to the working directory where the file is below it.

    Attributes:
      file: the path.
      line: the first line.
      end_line: the last line; None where there is one line alone.
    """

    file: str
    line: int
    end_line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f"-{self.end_line}" if self.end_line else "")


class PlacedError(PairError):
    """An error of the user's file.

    Attributes:
      place: the line to look at.
    """

    def __init__(self, message: str, where: Place) -> None:
        super().__init__(message)
        self.place = where


def place(file: str | Path, line: int, end_line: int | None = None) -> Place:
    """With the path as a reader at the working directory writes it."""
    path, here = Path(file).resolve(), Path.cwd().resolve()
    return Place(str(path.relative_to(here) if path.is_relative_to(here) else path), line, end_line)


def place_of_divergence(model: "nnx.Module", twins: Iterable["Twin"], divergence: Divergence) -> Place | None:
    """The lines of the JAX model to look at.

    For the code of a module they go from the layer that is right to the one that gets something else, or are its
    `__call__` where these are not found; for a layer of a library, the line that makes the layer; for a plain
    function, its first line.

    Args:
      model: the JAX side.
      twins: which of its modules is which of PyTorch's, by whose names `divergence` speaks.
      divergence: the first difference.

    Returns:
      None where no module around the place is the user's own.
    """
    from flax import nnx  # here: results and places are read where Flax may be missing

    from jaxmodels.compare.adapters.protocol import adapter_of
    from jaxmodels.compare.stacks import stacked_path

    names = {twin.theirs: stacked_path(twin.ours) for twin in twins} | {MODEL: ""}
    path = names.get(divergence.layer)
    if path is None:
        return None
    adapter = adapter_of(model)
    sources = {
        ".".join(map(str, key)): type(node)
        for key, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Module)
    }
    sources[""] = type(model)
    below = ""  # the part of the path that leads from the user's module to the layer
    while True:
        source = adapter.source(path) if adapter else sources.get(path)
        if source is not None and _is_users(source):
            between = [
                _attribute(names.get(name or MODEL), path) for name in (divergence.after, divergence.before)
            ]
            return (None if below else _lines_between(source, *between)) or _line_of(source, below)
        if not path:
            return None
        path, _, last = path.rpartition(".")
        below = f"{last}.{below}" if below else last


def place_of_error(error: BaseException, folder: Path) -> Place | None:
    """The innermost line in a file below `folder`, in the traceback of an error or of its causes."""
    found = None
    chain: BaseException | None = error
    while chain is not None:
        for frame in traceback.extract_tb(chain.__traceback__):
            path = Path(frame.filename).resolve()
            if path.is_file() and path.is_relative_to(folder.resolve()) and not _is_installed(path):
                found = place(path, frame.lineno or 1)
        if isinstance(chain, SyntaxError) and chain.filename and chain.lineno:
            found = place(chain.filename, chain.lineno)
        chain = chain.__cause__ or chain.__context__
    return found


def _is_users(source: Any) -> bool:
    try:
        path = Path(inspect.getsourcefile(source) or "").resolve()
    except TypeError:  # built in, or written at a prompt
        return False
    return path.is_file() and not path.is_relative_to(OWN) and not _is_installed(path)


def _is_installed(path: Path) -> bool:
    return "site-packages" in path.parts or any(path.is_relative_to(installed) for installed in INSTALLED)


def _attribute(path: str | None, owner: str) -> str | None:
    """The attribute of a module that leads to a layer below it."""
    prefix = f"{owner}." if owner else ""
    return path[len(prefix) :].split(".")[0] if path and path.startswith(prefix) else None


def _lines_between(source: Any, after: str | None, before: str | None) -> Place | None:
    """From the last use of one attribute to the next use of another one, in the methods of a class but its making."""
    try:
        lines, first = inspect.getsourcelines(source)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return None
    if before is None or not isinstance(tree.body[0], ast.ClassDef):
        return None
    methods = [
        node for node in tree.body[0].body if isinstance(node, ast.FunctionDef) and node.name not in MAKING
    ]
    for method in methods:
        uses = [
            (node.lineno, node.attr)
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ]
        ends = [line for line, name in uses if name == before]
        starts = [line for line, name in uses if name == after and ends and line <= max(ends)]
        if ends:
            start = max(starts) if starts else min(ends)
            end = min(line for line in ends if line >= start)
            return place(
                inspect.getsourcefile(source) or "",
                first - 1 + start,
                first - 1 + end if end > start else None,
            )
    return None


def _line_of(source: Any, attributes: str) -> Place | None:
    """The `__call__` of a class or the first line of a function, or the line that makes one of its layers."""
    try:
        lines, first = inspect.getsourcelines(source)
        file = inspect.getsourcefile(source) or ""
    except OSError:
        return None
    patterns = [r"def __call__\b"]
    if attributes:
        name = re.escape(attributes.split(".")[0])
        # An attribute, a layer that Linen's or Haiku's code names where it is called, a field of a dataclass.
        patterns = [rf"self\.{name}\b.*=", rf"""["']{name}["']""", rf"^\s*{name}\s*:", *patterns]
    for pattern in patterns:
        for i, line in enumerate(lines):
            if re.search(pattern, line):
                return place(file, first + i)
    return place(file, first)
