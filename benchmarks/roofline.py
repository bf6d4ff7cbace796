"""The least time that an H200 needs for the GPU sizes: FLOP and bytes of the programs, counted without a GPU.

    python -m benchmarks.roofline   # lowers all ten programs and writes results/roofline.json; half a minute

Nothing is compiled or allocated: XLA analyses the lowered programs, from shapes alone. The bytes are therefore those
before fusion, more than a compiled program moves.
"""

import json
import platform
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.pairs import PAIRS
from benchmarks.workload import BenchmarkPair, Workload, to_ours
from jaxmodels.atomic import atomic_write
from jaxmodels.benchmark.table import Table
from jaxmodels.models import MODEL_NAMES, ModelName
from jaxmodels.training.functional_model import FunctionalModel


SUMMARY = Path(__file__).parent / "results" / "roofline.json"
PEAK, BANDWIDTH = 990e12, 4.8e12  # dense bfloat16 FLOP/s and bytes/s of an H200, from its data sheet
ADAMW_BYTES = 28  # per parameter: reads parameter, gradient and two moments, writes all but the gradient

# Worked out by hand, for sizes near the ones that are measured: millions of parameters, TFLOP forward and training.
BY_HAND: dict[ModelName, tuple[float, float, float]] = {
    "glom": (24, 4.1, 12.3),
    "hourglass": (331, 17.1, 51.3),
    "colt5": (93, 1.5, 4.4),
    "mammut": (463, 14.0, 57.5),
    "scalable_vit": (74, 2.6, 7.9),
}


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    models = {name: analysis(PAIRS[name], PAIRS[name].sizes["gpu"]) for name in MODEL_NAMES}
    environment = {"python": platform.python_version(), "jax": metadata.version("jax")}
    with atomic_write(SUMMARY) as path:
        path.write_text(json.dumps({"environment": environment, "models": models}, indent=1) + "\n")


def analysis(pair: BenchmarkPair, workload: Workload) -> dict[str, float]:
    """Parameters, and FLOP and bytes before fusion of one forward pass and of one training step in bfloat16."""
    functional = FunctionalModel(lambda: pair.build(workload, dtype=jnp.bfloat16))
    parameters = jax.eval_shape(lambda: functional.split(pair.build(workload, dtype=jnp.bfloat16)))
    batch = to_ours(pair.inputs(workload))

    def forward(parameters: Any, batch: Any) -> Any:
        return pair.call(functional.merge(parameters), batch, workload)

    def training(parameters: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda p: pair.loss_ours(functional.merge(p), batch, workload))(parameters)

    found: dict[str, float] = {"parameters": sum(p.size for p in jax.tree.leaves(parameters))}
    for name, function in (("forward", forward), ("train", training)):
        # XLA's analysis counts the body of a loop once, so loops are unrolled.
        with mock.patch.object(jax.lax, "scan", partial(jax.lax.scan, unroll=True)):
            cost = jax.jit(function).lower(parameters, batch).cost_analysis() or {}
        found |= {f"{name}_flop": cost["flops"], f"{name}_bytes": cost["bytes accessed"]}
    return found


def read() -> dict[str, Any]:
    """The committed results/roofline.json."""
    return json.loads(SUMMARY.read_text(encoding="utf-8"))


def floors(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The least milliseconds of an H200, by model and mode: FLOP at its peak, and AdamW's bytes at its bandwidth."""
    return {
        name: {
            "forward": 1000 * counts["forward_flop"] / PEAK,
            "train": 1000 * (counts["train_flop"] / PEAK + ADAMW_BYTES * counts["parameters"] / BANDWIDTH),
        }
        for name, counts in summary["models"].items()
    }


def table(summary: dict[str, Any]) -> Table:
    """One line per model: counts, floors, and the same worked out by hand."""
    head = [
        "model",
        "parameters, M",
        "forward, TFLOP",
        "floor, ms",
        "training, TFLOP",
        "floor, ms",
        "AdamW, ms",
    ]
    head += ["GB before fusion, forward", "training", "by hand: parameters, M", "forward, ms", "training, ms"]
    body = []
    for name, counts in summary["models"].items():
        millions, *by_hand = BY_HAND[name]
        forward, train = counts["forward_flop"], counts["train_flop"]
        line = [name, f"{counts['parameters'] / 1e6:.0f}"]
        for flop in (forward, train):
            line += [f"{flop / 1e12:.1f}", f"{1000 * flop / PEAK:.1f}"]
        line += [f"{1000 * ADAMW_BYTES * counts['parameters'] / BANDWIDTH:.2f}"]
        line += [f"{counts[f'{mode}_bytes'] / 1e9:,.0f}" for mode in ("forward", "train")]
        line += [f"{millions:.0f}", *(f"{1000 * tera * 1e12 / PEAK:.1f}" for tera in by_hand)]
        body.append(line)
    return Table(head, body)


if __name__ == "__main__":
    main()
