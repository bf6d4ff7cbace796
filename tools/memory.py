"""Memory of a training step per device, from the compiled program, against the number of devices.

python tools/memory.py            # compiles for 1, 2, 4 and 8 simulated devices, writes docs/memory.json
python tools/memory.py --tables   # only writes the table in docs/train.md
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any


os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
ROOT = Path(__file__).parents[1]
SUMMARY = ROOT / "docs" / "memory.json"
PAGE = ROOT / "docs" / "train.md"
PRESET = "hourglass-sotu-gpu"
BEGIN, END = "<!-- memory: begin -->\n", "<!-- memory: end -->\n"
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("1 device", {"devices": 1}),
    ("2 devices, fsdp=2", {"devices": 2}),
    ("4 devices, fsdp=4", {"devices": 4}),
    ("8 devices, fsdp=8", {"devices": 8}),
    ("1 device, --accumulate 4", {"devices": 1, "accumulate": 4}),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="only write the table")
    if not parser.parse_args().tables:
        rows = []
        for name, settings in VARIANTS:
            rows.append({"name": name, **measure(**settings)})
            print(rows[-1], flush=True)
        summary = {"preset": PRESET, "rows": rows}
        SUMMARY.write_text(json.dumps(summary, indent=1) + "\n")
    before, found, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    if not found:
        sys.exit(f"{PAGE} has no mark {BEGIN.strip()}")
    PAGE.write_text(before + BEGIN + table(json.loads(SUMMARY.read_text())) + END + after)


def measure(*, devices: int, **changes: Any) -> dict[str, int]:
    """Bytes of one device: state and batch, and what the step needs besides."""
    import jax
    from rich.console import Console

    from jaxmodels.training.command import parse
    from jaxmodels.training.mesh import MeshConfig, batch_sharding
    from jaxmodels.training.run.loop import Run
    from jaxmodels.training.run.progress import Reporter
    from jaxmodels.training.run.workdir import Workdir

    experiment: Any = parse([PRESET, "--workdir", "unused"])
    experiment = replace(experiment, precision="float32", mesh=MeshConfig(data=1, fsdp=devices), **changes)
    task = experiment.task()
    run = Run(experiment, task, Workdir(experiment.workdir), Reporter(Console()))
    shape = (experiment.batch_size, experiment.model.max_seq_len + 1)
    batch = {"tokens": jax.ShapeDtypeStruct(shape, "int32", sharding=batch_sharding(run.mesh))}
    memory = run.step().lower(run.abstract, batch).compile().memory_analysis()
    return {"state": memory.argument_size_in_bytes, "step": memory.temp_size_in_bytes}


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    whole = summary["rows"][0]
    lines = ["| | state, MiB | activations and gradients, MiB | together |", "| --- | --: | --: | --: |"]
    for row in summary["rows"]:
        share = (row["state"] + row["step"]) / (whole["state"] + whole["step"])
        lines.append(
            f"| {row['name']} | {row['state'] / 2**20:,.0f} | {row['step'] / 2**20:,.0f} | {share:.0%} |"
        )
    lines += [
        "",
        f"Per device, `{summary['preset']}` with the global batch unchanged and float32 computation, from XLA's "
        "analysis of the program compiled for simulated CPU devices (`python tools/memory.py`).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
