"""Memory of a training step per device, from the compiled program, against the number of devices.

python -m tools.memory            # compiles for 1, 2, 4 and 8 simulated devices, then writes the table
python -m tools.memory --tables   # only writes the table, from docs/memory.json
"""

import json
import os
from dataclasses import replace
from typing import Any

import tyro

from jaxmodels.benchmark.table import Table
from tools.tables import ROOT, update


SUMMARY = ROOT / "docs" / "memory.json"
PRESET = "hourglass-sotu-gpu"
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("1 device", {"devices": 1}),
    ("2 devices, fsdp=2", {"devices": 2}),
    ("4 devices, fsdp=4", {"devices": 4}),
    ("8 devices, fsdp=8", {"devices": 8}),
    ("1 device, --accumulate 4", {"devices": 1, "accumulate": 4}),
)


def main(*, tables: bool = False) -> None:
    """Measure the memory of a training step per device, and write the table.

    Args:
      tables: measure nothing; only write the table, from docs/memory.json.
    """
    if not tables:
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # read when JAX is imported
        rows = []
        for name, settings in VARIANTS:
            rows.append({"name": name, **measure(**settings)})
            print(rows[-1], flush=True)
        summary = {"preset": PRESET, "rows": rows}
        SUMMARY.write_text(json.dumps(summary, indent=1) + "\n")
    update("memory", text(json.loads(SUMMARY.read_text())))


def measure(*, devices: int, **changes: Any) -> dict[str, int]:
    """Bytes on one device: "state" with the batch, and "step", the temporary memory of a step."""
    from jaxmodels.training.command import parse
    from jaxmodels.training.mesh import MeshConfig
    from jaxmodels.training.run.program import Program

    experiment: Any = parse([PRESET, "--workdir", "unused"])
    experiment = replace(experiment, precision="float32", mesh=MeshConfig(data=1, fsdp=devices), **changes)
    program = Program(experiment, experiment.task())
    lowered = program.step().lower(program.abstract_state, program.abstract_batch)
    memory = lowered.compile().memory_analysis()
    return {"state": memory.argument_size_in_bytes, "step": memory.temp_size_in_bytes}


def text(summary: dict[str, Any]) -> str:
    """The table and its caption."""
    first = summary["rows"][0]
    table = Table(["", "state, MiB", "activations and gradients, MiB", "together"], [])
    for row in summary["rows"]:
        share = (row["state"] + row["step"]) / (first["state"] + first["step"])
        table.body.append(
            [row["name"], f"{row['state'] / 2**20:,.0f}", f"{row['step'] / 2**20:,.0f}", f"{share:.0%}"]
        )
    return (
        f"{table}\nPer device, `{summary['preset']}` with the global batch unchanged and float32 computation, from "
        "XLA's analysis of the program compiled for simulated CPU devices (`python -m tools.memory`).\n"
    )


if __name__ == "__main__":
    tyro.cli(main)
