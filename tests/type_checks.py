"""How annotated calls are checked while tests run: types by beartype, shapes by jaxtyping."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jaxtyping
import numpy as np
import tyro
from beartype import BeartypeConf, FrozenDict, beartype


_checked = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int may stand for a float
        # NumPy's integers and booleans are that as well. Presets leave the paths that only the command line knows to tyro.
        hint_overrides=FrozenDict(
            {int: int | np.integer, bool: bool | np.bool, Path: Path | type(tyro.MISSING)}
        ),
    )
)


def checked(function: Callable) -> Callable:
    """`function` with checks of its annotations.

    Configs are left alone: they check their own fields, with errors that have tests, and take JSON's lists for tuples.
    So is what beartype does not know: `Self` in a method alone, and types that contain themselves, here `Depth`.
    """
    hints = list(function.__annotations__.values())
    unknown = Self in hints or any("ForwardRef('Depth')" in str(hint) for hint in hints)
    return function if unknown or function.__qualname__.endswith("Config.__init__") else _checked(function)


def check_calls(*packages: str) -> Any:
    """From here on, or within `with`, modules of these packages are imported with checks of every annotated call."""
    return jaxtyping.install_import_hook(packages, f"{__name__}.checked")
