"""Limits on the compiled steps of the small models, on a CPU; tests_tpu has the same for TPUs."""

import os
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmodels.training.compilation.analysis import Analysis, analyse
from jaxmodels.training.run.program import Program
from tests.training.budgets import (
    EXPERIMENT,
    FLOAT32_PRODUCTS,
    RECORD,
    measure,
    record,
    recorded,
    violations,
)
from tests.training.small_tasks import TASKS
from tests.training.toy_task import ToyTask


VERSION = f"cpu, jaxlib {version('jaxlib')}"
KNOWN_IN_TOY = 5  # its loss compares all images with each other; the gradient of its attention


@pytest.mark.parametrize("name", TASKS)
def test_step_stays_within_its_limits(name: str) -> None:
    analysis = measure(name, jax.devices()[:4])
    if os.environ.get("RECORD_BUDGETS"):
        record(RECORD, VERSION, {name: analysis.memory.temporaries or 0})
    temporaries = recorded(RECORD, VERSION).get(name)
    found = violations(analysis, float32_products=FLOAT32_PRODUCTS[name], temporaries=temporaries)
    assert found == []


class Faultless(Program):
    """The step of the toy task, as it is."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(replace(EXPERIMENT, **changes), ToyTask(), devices=jax.devices()[:4])

    def extra(self, state: Any, batch: Any) -> Any:
        """A number that the step computes besides."""
        return 0.0

    def step(self) -> Any:
        step = super().step().__wrapped__

        def with_extra(state: Any, batch: Any) -> Any:
            state, metrics = step(state, batch)
            return state, {**metrics, "extra": self.extra(state, batch)}

        return jax.jit(
            with_extra, donate_argnums=self.donated(), out_shardings=(self._state_shardings(), None)
        )

    def donated(self) -> tuple[int, ...]:
        return (0,)


class NotDonated(Faultless):
    def donated(self) -> tuple[int, ...]:
        return ()


class Resharded(Faultless):
    """The images change from cut by example to cut by column."""

    def extra(self, state: Any, batch: Any) -> Any:
        columns = NamedSharding(self.mesh, P(None, None, ("data", "fsdp")))
        return jnp.sum(jnp.sort(jax.lax.with_sharding_constraint(batch["images"], columns), axis=0)[3])


class Large(Faultless):
    """Keeps the products of all pixels of an image."""

    def extra(self, state: Any, batch: Any) -> Any:
        pixels = batch["images"].reshape(len(batch["images"]), -1)
        return jnp.sum(jnp.sort(pixels[:, :, None] + pixels[:, None], axis=1)[:, 3])


@pytest.fixture(scope="module")
def faultless() -> Analysis:
    return analyse(Faultless())


def test_what_is_within_its_limits(faultless: Analysis) -> None:
    needed = faultless.memory.temporaries
    assert violations(faultless, float32_products=KNOWN_IN_TOY, temporaries=needed) == []


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda: NotDonated(), "arrays of the state are not replaced in place"),
        (lambda: Faultless(precision="float32"), "products in float32, 5 are known"),
        (lambda: Resharded(), "unexpected messages: all-to-all"),
        (lambda: Large(), "temporary memory is"),
    ],
)
def test_a_violation_is_found(program: Any, message: str, faultless: Analysis) -> None:
    found = violations(
        analyse(program()), float32_products=KNOWN_IN_TOY, temporaries=faultless.memory.temporaries
    )
    assert any(message in line for line in found), found
