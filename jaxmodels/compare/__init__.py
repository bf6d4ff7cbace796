"""Proof that a Flax model and a PyTorch model compute the same; needs PyTorch."""

from jaxmodels.compare.divergence import Divergence as Divergence
from jaxmodels.compare.engine import compare as compare
from jaxmodels.compare.layouts import table_from_names as table_from_names
from jaxmodels.compare.noise import Check as Check
from jaxmodels.compare.pair import Pair as Pair
from jaxmodels.compare.precision import ReducedPrecisionError as ReducedPrecisionError
from jaxmodels.compare.report import print_table as print_table
from jaxmodels.compare.report import write as write
from jaxmodels.compare.result import Result as Result
from jaxmodels.compare.steps import Losses as Losses
from jaxmodels.compare.testing import assert_same as assert_same
