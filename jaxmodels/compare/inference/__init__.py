"""The table of two models whose names need not agree, and a file for what it could not decide."""

from typing import TYPE_CHECKING

from jaxmodels.lazy import lazily


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

__getattr__, __dir__ = lazily(globals(), _MODULES)
