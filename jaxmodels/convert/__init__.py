"""Weights: PyTorch checkpoints <-> Flax models."""

from typing import TYPE_CHECKING

from jaxmodels.lazy import lazily


if TYPE_CHECKING:
    from jaxmodels.convert.bare_checkpoints import from_checkpoint as from_checkpoint
    from jaxmodels.convert.core import load_state_dict as load_state_dict
    from jaxmodels.convert.core import to_state_dict as to_state_dict
    from jaxmodels.convert.hub import from_pretrained as from_pretrained
    from jaxmodels.convert.hub import load_decoder as load_decoder
    from jaxmodels.convert.hub import load_preprocessing as load_preprocessing
    from jaxmodels.convert.hub import save_pretrained as save_pretrained

# Where each public name lives. It is imported when it is first used: the tables and PyTorch's files need no JAX.
_MODULES = {
    "from_checkpoint": "jaxmodels.convert.bare_checkpoints",
    "load_state_dict": "jaxmodels.convert.core",
    "to_state_dict": "jaxmodels.convert.core",
    "from_pretrained": "jaxmodels.convert.hub",
    "load_decoder": "jaxmodels.convert.hub",
    "load_preprocessing": "jaxmodels.convert.hub",
    "save_pretrained": "jaxmodels.convert.hub",
}

__getattr__, __dir__ = lazily(globals(), _MODULES)
