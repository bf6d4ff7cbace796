"""A user's file with a function `pair()`: read, called, checked."""

import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmodels.compare.places import PlacedError, place, place_of_error


if TYPE_CHECKING:
    from jaxmodels.compare.pair import Pair

MODULE = "jaxmodels_pair_file"  # the name that the file has in sys.modules


def read_pairs(path: Path) -> "list[Pair]":
    """Runs the file and calls its `pair()`; modules beside the file can be imported.

    Returns:
      One pair or several.

    Raises:
      FileNotFoundError: there is no such file.
      PlacedError: the file fails, has no function `pair`, or `pair()` returns something else or two pairs of one name.
    """
    from jaxmodels.compare.pair import (
        Pair,  # here: one side of a file is captured without the other framework
    )

    module = run_file(path)
    function = getattr(module, "pair", None)
    if not callable(function):
        where = place(path, 1)
        raise PlacedError(
            f"{where.file} has no function pair(): define one that takes no argument and returns a "
            "jaxmodels.compare.Pair, or a list of them",
            where,
        )
    line = getattr(getattr(function, "__code__", None), "co_firstlineno", 1)
    try:
        returned = function()
    except Exception as error:
        raise failure("pair()", error, path) from error
    pairs = list(returned) if isinstance(returned, list | tuple) else [returned]
    if not pairs or not all(isinstance(value, Pair) for value in pairs):
        got = f"an empty {type(returned).__name__}" if not pairs else _described(returned)
        where = place(path, line)
        raise PlacedError(
            f"{where}: pair() must return a jaxmodels.compare.Pair, or a list of them; got {got}", where
        )
    repeated = [name for name, count in Counter(one.name for one in pairs).items() if count > 1]
    if repeated:
        where = place(path, line)
        raise PlacedError(
            f"{where}: pair() returns several pairs with the name {repeated[0]!r}, which no report could tell apart: "
            f"give each its own, such as name='{repeated[0]} 1'",
            where,
        )
    return pairs


def run_file(path: Path) -> Any:
    """Runs the file; modules beside it can be imported.

    Returns:
      The module.

    Raises:
      FileNotFoundError: there is no such file.
      PlacedError: it fails.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such file", str(path))
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python pair.py` does
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module  # dataclasses and inspect look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise failure("the file", error, path) from error
    return module


def failure(what: str, error: BaseException, path: Path) -> PlacedError:
    """The error of a user's file, with the line that raised it; `what` is what was run."""
    where = place_of_error(error, path.parent) or place(path, 1)
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return PlacedError(f"{where}: {what} fails with {type(error).__name__}: {reason}", where)


def _described(returned: Any) -> str:
    if isinstance(returned, Sequence) and not isinstance(returned, str):
        return f"a {type(returned).__name__} of {', '.join(sorted({type(x).__name__ for x in returned}))}"
    return "None: is its return missing?" if returned is None else f"a {type(returned).__name__}"
