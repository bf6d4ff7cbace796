"""Weights: PyTorch checkpoints <-> Flax models."""

from jaxmodels.convert.core import load_state_dict as load_state_dict
from jaxmodels.convert.core import to_state_dict as to_state_dict
