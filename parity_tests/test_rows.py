"""The parity matrix: published package, reference and JAX on every option and mode."""

import numpy as np
import pytest

from parity_tests.cases import CASES
from parity_tests.harness import TOLERANCE, Triple, assert_close, compare_gradients


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest):
    return request.param


@pytest.mark.usefixtures("strict_promotion")
def test_parity(triple: Triple, dtype: str) -> None:
    """Outputs, gradients of all parameters and gradients of the inputs."""
    tolerance = TOLERANCE[np.dtype(dtype)]
    outputs, gradients, input_gradients = triple.run_torch(triple.reference)
    if triple.published is not None:
        published = triple.run_torch(triple.published, published=True)
        exact = 1e-12 if dtype == "float64" else tolerance
        for i, (actual, expected) in enumerate(zip(outputs, published[0], strict=True)):
            assert_close(actual, expected, exact, f"reference against package, output {i}")
        compare_gradients(gradients, published[1], tolerance)
    else:
        assert triple.case.published_missing, "a row without the package must say why"

    our_outputs, our_gradients, our_input_gradients = triple.run_jax()
    for i, (actual, expected) in enumerate(zip(our_outputs, outputs, strict=True)):
        assert_close(actual, expected, tolerance, f"output {i}")
    compare_gradients(our_gradients, gradients, tolerance)
    expected_inputs = triple.case.to_jax(input_gradients)
    for name, actual in our_input_gradients.items():
        assert_close(actual, np.ascontiguousarray(expected_inputs[name]), tolerance, f"gradient of {name}")
