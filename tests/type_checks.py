"""How annotated calls are checked while tests run: types by beartype, shapes by jaxtyping."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jaxtyping
import numpy as np
import tyro
from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping._import_hook import JaxtypingTransformer


_checked = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int may stand for a float
        # NumPy's integers and booleans are that as well. Presets leave the paths that only the command line knows to tyro.
        hint_overrides=FrozenDict(
            {int: int | np.integer, bool: bool | np.bool, Path: Path | type(tyro.MISSING)}
        ),
    )
)


def with_checks(function: Callable) -> Callable:
    """`function` with checks of its annotations.

    Configs are left alone: they check their own fields, with errors that have tests, and take JSON's lists for tuples.
    So is what beartype does not know: `Self` in a method alone, and types that contain themselves, here `Depth`.
    """
    hints = list(function.__annotations__.values())
    unknown = Self in hints or any("ForwardRef('Depth')" in str(hint) for hint in hints)
    return function if unknown or function.__qualname__.endswith("Config.__init__") else _checked(function)


_add_check = JaxtypingTransformer.visit_FunctionDef


def _add_check_to_annotated(hook: JaxtypingTransformer, node: ast.FunctionDef) -> ast.FunctionDef:
    """Leaves functions alone that stand in functions and have no annotation: nothing in them can be checked.

    Every call of the function around them would wrap them again, which takes milliseconds.
    """
    inside = any(isinstance(parent, ast.FunctionDef) for parent in hook._parents)
    parameters = [each for each in ast.walk(node.args) if isinstance(each, ast.arg)]
    if inside and not (node.returns or any(each.annotation for each in parameters)):
        return node
    return _add_check(hook, node)


JaxtypingTransformer.visit_FunctionDef = _add_check_to_annotated


def check_calls(*packages: str) -> Any:
    """From here on, or within `with`, modules of these packages are imported with checks of every annotated call."""
    return jaxtyping.install_import_hook(packages, f"{__name__}.with_checks")
