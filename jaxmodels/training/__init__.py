"""Training: the five models on real data, on one device or many; see docs/train.md."""

from jaxmodels.training.experiment import Experiment as Experiment
from jaxmodels.training.presets import PRESETS as PRESETS
from jaxmodels.training.run.loop import train as train
