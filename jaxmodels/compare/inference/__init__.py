"""The table of two models whose names need not agree, and a file for what it could not decide."""

from jaxmodels.compare.inference.infer import UndecidedError as UndecidedError
from jaxmodels.compare.inference.infer import infer_table as infer_table
from jaxmodels.compare.inference.maps import Undecided as Undecided
from jaxmodels.compare.inference.maps import read_map as read_map
from jaxmodels.compare.inference.maps import write_map as write_map
