"""The training steps of the five small models compile for TPUs, and stay within their limits."""

import os
from pathlib import Path
from typing import Any

import pytest

from jaxmodels.training.chips import topology_devices
from tests.training.budgets import FLOAT32_PRODUCTS, measure, record, recorded, violations
from tests.training.small_tasks import TASKS


RECORD = Path(__file__).with_name("budgets.json")


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("name", TASKS)
def test_step(name: str, topology: str, results: dict[str, Any]) -> None:
    analysis = measure(name, topology_devices(topology))
    if os.environ.get("RECORD_BUDGETS"):
        record(RECORD, topology, {name: analysis.memory.temporaries or 0})
    found = violations(
        analysis,
        float32_products=FLOAT32_PRODUCTS[name],
        temporaries=recorded(RECORD, topology).get(name),
    )
    assert found == []
    assert analysis.memory.fits
    results[f"step of {name}, {topology}"] = {
        "temporaries": analysis.memory.temporaries,
        "messages": {kind: messages.count for kind, messages in (analysis.collectives or {}).items()},
        "seconds to compile": round(analysis.compile_seconds),
    }
