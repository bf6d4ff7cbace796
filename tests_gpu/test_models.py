"""The five models in the benchmarks' small sizes: outputs, loss and gradients against the CPU's in float64."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.pairs import PAIRS
from benchmarks.workload import BenchmarkPair, Workload, perturb, to_ours
from jaxmodels.models import MODEL_NAMES
from jaxmodels.training.functional_model import FunctionalModel


# Largest difference of an output over the largest output, of the loss over the loss, and the norm of the difference of
# all gradients over theirs. Measured on a CPU: 5.3e-7, 2.4e-7, 4.9e-7 and 0.0097, 0.0009, 0.0113. On a GPU only the
# outputs in bfloat16 were, at larger sizes and against PyTorch: 0.010 to 0.034.
FLOAT32 = 5e-6, 3e-6, 5e-6
BFLOAT16 = 0.04, 0.003, 0.035


class Results(NamedTuple):
    outputs: np.ndarray
    loss: np.ndarray
    gradients: dict[str, np.ndarray]


@functools.cache
def problem(name: str) -> tuple[BenchmarkPair, Workload, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The pair, its small workload, parameters and inputs."""
    pair = PAIRS[name]
    workload = pair.workload("small")
    with jax.default_device(jax.devices("cpu")[0]):
        parameters = FunctionalModel(lambda: pair.build(workload)).split(perturb(pair.build(workload)))
        return pair, workload, jax.tree.map(np.asarray, parameters), to_ours(pair.inputs(workload))


def compute(name: str, dtype: Any, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Results:
    """Runs the model once; `change` is applied to its parameters and inputs."""
    pair, workload, parameters, batch = problem(name)
    functional = FunctionalModel(lambda: pair.build(workload, dtype=dtype))

    def run(parameters: Any, batch: Any) -> Any:
        def loss(parameters: Any) -> Any:
            return pair.loss_ours(functional.merge(parameters), batch, workload)

        outputs = pair.call(functional.merge(parameters), batch, workload)
        return outputs, *jax.value_and_grad(loss)(parameters)

    found = jax.jit(run)(jax.tree.map(change, parameters), jax.tree.map(change, batch))
    return Results(*jax.tree.map(lambda x: np.asarray(x).astype(np.float64), found))


@functools.cache
def exact(name: str) -> Results:
    """In float64 on the CPU."""

    def double(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64) if x.dtype == np.float32 else x

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return compute(name, None, double)


def distances(found: Results, expected: Results) -> tuple[float, float, float]:
    """Of the outputs, the loss and the gradients; see `FLOAT32`."""
    outputs = np.abs(found.outputs - expected.outputs).max() / np.abs(expected.outputs).max()
    loss = abs(found.loss - expected.loss) / abs(expected.loss)
    assert found.gradients.keys() == expected.gradients.keys()
    squares = [
        (np.square(found.gradients[name] - g).sum(), np.square(g).sum())
        for name, g in expected.gradients.items()
    ]
    difference, norm = np.sum(squares, axis=0)
    return float(outputs), float(loss), float(np.sqrt(difference / norm))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_float32_is_that_of_the_cpu_in_float64(name: str) -> None:
    with jax.default_matmul_precision("highest"):  # by default a GPU multiplies float32 as TensorFloat32
        found = distances(compute(name, None), exact(name))
    print(f"{name} float32: {found}")
    assert all(distance <= limit for distance, limit in zip(found, FLOAT32, strict=True)), found


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_bfloat16_stays_within_its_distance(name: str) -> None:
    found = distances(compute(name, jnp.bfloat16), exact(name))
    print(f"{name} bfloat16: {found}")
    assert all(distance <= limit for distance, limit in zip(found, BFLOAT16, strict=True)), found
