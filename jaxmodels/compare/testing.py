"""The comparison as an assertion, for tests of a port."""

from typing import Any

from jaxmodels.compare.engine import compare
from jaxmodels.compare.explanation import explain
from jaxmodels.compare.pair import Pair
from jaxmodels.compare.result import Result


def assert_same(pair: Pair, **options: Any) -> Result:
    """Compares a pair and fails unless both sides are equal.

    Args:
      pair: the two models.
      options: arguments of `compare`, such as `dtype` and `steps`.

    Returns:
      All measurements.

    Raises:
      AssertionError: the sides differ, or cannot be judged. The message names the layer, the difference, the
        mistake where one was found, and what to try next.
      ValueError, ReducedPrecisionError: as `compare`.
    """
    __tracebackhide__ = True  # pytest shows the test's line instead of this one
    result = compare(pair, **options)
    if not result.ok:
        lines = [f"  {label}: {text}" for label, text in explain(result).items()]
        verdict = "differs from PyTorch" if result.verdict == "different" else "cannot be judged"
        raise AssertionError("\n".join([f"{result.model} {verdict} in {result.dtype}", *lines]))
    return result
