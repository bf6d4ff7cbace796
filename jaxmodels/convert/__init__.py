"""Weights: PyTorch checkpoints <-> Flax models."""

from jaxmodels.convert.bare_checkpoints import from_checkpoint as from_checkpoint
from jaxmodels.convert.core import load_state_dict as load_state_dict
from jaxmodels.convert.core import to_state_dict as to_state_dict
from jaxmodels.convert.hub import from_pretrained as from_pretrained
from jaxmodels.convert.hub import load_decoder as load_decoder
from jaxmodels.convert.hub import load_preprocessing as load_preprocessing
from jaxmodels.convert.hub import save_pretrained as save_pretrained
