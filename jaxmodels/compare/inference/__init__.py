"""The table of two models whose names need not agree, and a file for what it could not decide."""

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from jaxmodels.compare.inference.infer import UndecidedError as UndecidedError
    from jaxmodels.compare.inference.infer import infer_table as infer_table
    from jaxmodels.compare.inference.maps import Undecided as Undecided
    from jaxmodels.compare.inference.maps import read_map as read_map
    from jaxmodels.compare.inference.maps import write_map as write_map

# Imported when first used: a map is read where captures are judged, without either framework.
_MODULES = {
    "UndecidedError": "jaxmodels.compare.inference.infer",
    "infer_table": "jaxmodels.compare.inference.infer",
    "Undecided": "jaxmodels.compare.inference.maps",
    "read_map": "jaxmodels.compare.inference.maps",
    "write_map": "jaxmodels.compare.inference.maps",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
