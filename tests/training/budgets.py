"""Limits on what the compiled step of each small model may need, and what is recorded of it.

With the environment variable RECORD_BUDGETS=1 the tests write down the temporary memory instead of comparing it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxmodels.training.compilation.analysis import Analysis, analyse
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.mesh import MeshConfig
from jaxmodels.training.run.program import Program
from tests.training.small_tasks import TASKS


RECORD = Path(__file__).with_name("budgets.json")
EXPERIMENT = Experiment(
    workdir=Path("unused"), steps=10, batch_size=16, precision="bfloat16", mesh=MeshConfig(data=2, fsdp=2)
)
# Each device fetches the parameters, and all add up their gradients. The compiler may fuse an addition with a cut.
EXPECTED_MESSAGES = ("all-gather", "all-reduce", "reduce-scatter")
# Products in float32 of a model in bfloat16, at most. Two for each attention: the gradients of its weights and values.
# CoLT5 scores its tokens in float32, MaMMUT compares its images with its texts.
FLOAT32_PRODUCTS = {"hourglass": 8, "scalable_vit": 8, "colt5": 13, "glom": 0, "mammut": 19}
TOLERANCE = 0.1  # of the temporary memory


def measure(name: str, devices: Sequence[jax.Device], **changes: Any) -> Analysis:
    """The compiled step of a small model over four devices."""
    experiment = replace(EXPERIMENT, **changes)
    return analyse(Program(experiment, TASKS[name](), devices=devices))


def violations(analysis: Analysis, *, float32_products: int, temporaries: int | None = None) -> list[str]:
    """What of a step in bfloat16 is beyond its limits, in words.

    Args:
      analysis: of the step.
      float32_products: how many are known.
      temporaries: the recorded temporary memory in bytes, if there is a record.
    """
    found = []
    reused, arrays = analysis.reused or (0, 0)
    if reused < arrays:
        found.append(f"{arrays - reused} of {arrays} arrays of the state are not replaced in place")
    wide = [product.shapes for product in analysis.products if product.dtype != "bfloat16"]
    if len(wide) > float32_products:
        found.append(f"{len(wide)} products in float32, {float32_products} are known: {wide}")
    if unexpected := set(analysis.collectives or {}) - set(EXPECTED_MESSAGES):
        found.append(f"unexpected messages: {', '.join(sorted(unexpected))}")
    needed = analysis.memory.temporaries or 0
    if temporaries and abs(needed - temporaries) > TOLERANCE * temporaries:
        found.append(f"temporary memory is {needed:,} bytes, {temporaries:,} are recorded")
    return found


def recorded(path: Path, version: str) -> Mapping[str, int]:
    """Temporary memory of each small model with a version of the compiler; empty if there is no record of it."""
    return json.loads(path.read_text()).get(version, {}) if path.exists() else {}


def record(path: Path, version: str, temporaries: Mapping[str, int]) -> None:
    """Keeps them for `recorded`."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[version] = {**kept.get(version, {}), **temporaries}
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
