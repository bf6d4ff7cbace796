"""One side's run in a folder, written where the other framework may be missing, and judged where both may be."""

from typing import TYPE_CHECKING

from jaxmodels.lazy import lazily


if TYPE_CHECKING:
    from jaxmodels.compare.captures.files import Capture as Capture
    from jaxmodels.compare.captures.files import read_capture as read_capture
    from jaxmodels.compare.captures.jax_side import capture_jax as capture_jax
    from jaxmodels.compare.captures.judgement import judge as judge
    from jaxmodels.compare.captures.options import JaxOptions as JaxOptions
    from jaxmodels.compare.captures.options import Options as Options
    from jaxmodels.compare.captures.torch_side import capture_torch as capture_torch

# Imported when first used: neither framework is needed for the other one's capture.
_MODULES = {
    "Capture": "jaxmodels.compare.captures.files",
    "capture_jax": "jaxmodels.compare.captures.jax_side",
    "capture_torch": "jaxmodels.compare.captures.torch_side",
    "JaxOptions": "jaxmodels.compare.captures.options",
    "Options": "jaxmodels.compare.captures.options",
    "judge": "jaxmodels.compare.captures.judgement",
    "read_capture": "jaxmodels.compare.captures.files",
}

__getattr__, __dir__ = lazily(globals(), _MODULES)
