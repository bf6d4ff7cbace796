"""Proof that a Flax model and a PyTorch model compute the same; only captures work without both frameworks."""

from typing import TYPE_CHECKING

from jaxmodels.lazy import lazily


if TYPE_CHECKING:
    from jaxmodels.compare.adapters.equinox import Equinox as Equinox
    from jaxmodels.compare.adapters.function import Function as Function
    from jaxmodels.compare.adapters.haiku import Haiku as Haiku
    from jaxmodels.compare.adapters.linen import Linen as Linen
    from jaxmodels.compare.divergence import Divergence as Divergence
    from jaxmodels.compare.engine import compare as compare
    from jaxmodels.compare.inference.infer import UndecidedError as UndecidedError
    from jaxmodels.compare.inference.infer import infer_table as infer_table
    from jaxmodels.compare.inference.maps import Undecided as Undecided
    from jaxmodels.compare.inference.maps import read_map as read_map
    from jaxmodels.compare.inference.maps import write_map as write_map
    from jaxmodels.compare.layouts import table_from_names as table_from_names
    from jaxmodels.compare.noise import Check as Check
    from jaxmodels.compare.optimizer_comparison import compare_optimizers as compare_optimizers
    from jaxmodels.compare.pair import Pair as Pair
    from jaxmodels.compare.precision import ReducedPrecisionError as ReducedPrecisionError
    from jaxmodels.compare.report import print_table as print_table
    from jaxmodels.compare.report import write as write
    from jaxmodels.compare.result import Losses as Losses
    from jaxmodels.compare.result import Result as Result
    from jaxmodels.compare.runs import Setup as Setup
    from jaxmodels.compare.runs import explain_runs as explain_runs
    from jaxmodels.compare.testing import assert_same as assert_same
    from jaxmodels.compare.training import Training as Training

# Where each public name lives. It is imported when it is first used: most modules need both frameworks, and a capture
# is written in a process that may lack one of them.
_MODULES = {
    "Equinox": "jaxmodels.compare.adapters.equinox",
    "Function": "jaxmodels.compare.adapters.function",
    "Haiku": "jaxmodels.compare.adapters.haiku",
    "Linen": "jaxmodels.compare.adapters.linen",
    "Divergence": "jaxmodels.compare.divergence",
    "compare": "jaxmodels.compare.engine",
    "UndecidedError": "jaxmodels.compare.inference.infer",
    "infer_table": "jaxmodels.compare.inference.infer",
    "Undecided": "jaxmodels.compare.inference.maps",
    "read_map": "jaxmodels.compare.inference.maps",
    "write_map": "jaxmodels.compare.inference.maps",
    "table_from_names": "jaxmodels.compare.layouts",
    "Check": "jaxmodels.compare.noise",
    "compare_optimizers": "jaxmodels.compare.optimizer_comparison",
    "Training": "jaxmodels.compare.training",
    "Pair": "jaxmodels.compare.pair",
    "ReducedPrecisionError": "jaxmodels.compare.precision",
    "print_table": "jaxmodels.compare.report",
    "write": "jaxmodels.compare.report",
    "Result": "jaxmodels.compare.result",
    "Losses": "jaxmodels.compare.result",
    "Setup": "jaxmodels.compare.runs",
    "explain_runs": "jaxmodels.compare.runs",
    "assert_same": "jaxmodels.compare.testing",
}

__getattr__, __dir__ = lazily(globals(), _MODULES)
