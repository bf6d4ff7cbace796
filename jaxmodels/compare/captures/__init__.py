"""One side's run in a folder, written where the other framework may be missing, and judged where both may be."""

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from jaxmodels.compare.captures.files import Capture as Capture
    from jaxmodels.compare.captures.files import read_capture as read_capture
    from jaxmodels.compare.captures.jax_side import capture_jax as capture_jax
    from jaxmodels.compare.captures.judgement import judge as judge
    from jaxmodels.compare.captures.torch_side import capture_torch as capture_torch

# Imported when first used: neither framework is needed for the other one's capture.
_MODULES = {
    "Capture": "jaxmodels.compare.captures.files",
    "capture_jax": "jaxmodels.compare.captures.jax_side",
    "capture_torch": "jaxmodels.compare.captures.torch_side",
    "judge": "jaxmodels.compare.captures.judgement",
    "read_capture": "jaxmodels.compare.captures.files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
