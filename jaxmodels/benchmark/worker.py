"""One process, one measurement: `python -m jaxmodels.benchmark.worker JOB.json RESULT.json`.

A process that holds one implementation measures its first call and its peak memory. A process that holds several
times them in turn.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmodels.benchmark import measuring
from jaxmodels.benchmark.kinds import Device, Implementation, Mode, Precision
from jaxmodels.benchmark.machine import use_cores
from jaxmodels.benchmark.sides import Side, sides_of_file, sides_of_pair
from jaxmodels.compare.outputs import ANY_AXES, axes_of, named_leaves, to_our_axes


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process measures.

    Attributes:
      target: a file with a `pair()`, or the name of one of the five models.
      number: which of the file's pairs; None for its functions `jax_side()` and `torch_side()`.
      mode, precision: forward pass or training step, and the type of the computation; a `pair()` has float32 alone.
      implementations: one, whose first call and memory are measured; or several, which are timed in turn.
      rounds: how often each implementation is timed.
      threads: cores that every implementation may use.
      files: a folder with PyTorch's weights and inputs, weights.safetensors and inputs.safetensors.
      size, point: which workload of a file in benchmarks/pairs.
      device: where every implementation runs.
      attention: JAX's attention kernel, see `jaxmodels.nn.attend`.
      time_again: also time the last implementation as if it were one more, named "again".
      count_flop: also count the FLOP of eager PyTorch where several are timed.
      compile_only: of one implementation, measure nothing but the first call; JAX only compiles for it.
    """

    target: str
    mode: Mode
    implementations: tuple[Implementation, ...]
    rounds: int
    threads: int
    number: int | None = None
    precision: Precision = "float32"
    files: str | None = None
    size: str | None = None
    point: int | None = None
    device: Device = "cpu"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    time_again: bool = False
    count_flop: bool = False
    compile_only: bool = False

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Job":
        fields = json.loads(path.read_text())
        return cls(**fields | {"implementations": tuple(fields["implementations"])})


def main() -> None:
    job, out = Job.read(Path(sys.argv[1])), Path(sys.argv[2])
    use_cores(job.threads)
    if job.compile_only:
        result = compile_alone(job)
    else:
        result = measure_alone(job) if len(job.implementations) == 1 else time_in_turn(job)
    out.write_text(json.dumps(result))


def sides_of(job: Job) -> Callable[[Implementation], Side]:
    """What gives the models, inputs and calls of the job."""
    if job.number is not None:
        return sides_of_pair(job.target, job.number)
    options = {name: getattr(job, name) for name in ("size", "point", "precision", "attention")}
    return sides_of_file(job.target, options | {"files": None if job.files is None else Path(job.files)})


def call_of(job: Job, implementation: Implementation, side: Side) -> Callable[[], Any]:
    """The call to measure. Only the libraries of this implementation are imported."""
    model, inputs = side["model"], side["inputs"]
    functions = {name: side[name] for name in ("call", "loss") if side.get(name) is not None}
    if implementation == "jax":
        import jax

        from jaxmodels.benchmark.jax_side import JaxSide

        if job.device == "cuda" and job.precision == "float32":
            # By default JAX multiplies float32 as TensorFloat32 on a GPU; PyTorch does not.
            jax.config.update("jax_default_matmul_precision", "highest")
        return JaxSide(model, inputs, job.mode, learned=side.get("learned"), **functions)
    if implementation == "torchax":
        from jaxmodels.benchmark.torchax_side import TorchaxSide

        return TorchaxSide(model, inputs, job.mode, job.precision, **functions)
    import torch

    from jaxmodels.benchmark.torch_side import TorchSide

    torch.set_num_threads(job.threads)
    compiled = implementation == "compile"
    return TorchSide(
        model, inputs, job.mode, job.precision, compiled=compiled, device=job.device, **functions
    )


def measure_alone(job: Job) -> dict[str, Any]:
    """First call, memory and FLOP of the job's one implementation."""
    (name,) = job.implementations
    _import_libraries(name)
    sides = sides_of(job)
    return measuring.measure_alone(lambda: call_of(job, name, sides(name)), name, job.device)


def compile_alone(job: Job) -> dict[str, Any]:
    """First call of one implementation, whose programs later processes find in the caches.

    JAX compiles without running, so that many such processes fit in the memory of one device.
    """
    (name,) = job.implementations
    call: Any = call_of(job, name, sides_of(job)(name))
    began = time.perf_counter()
    if name == "jax":
        call.lowered().compile()
    else:
        call()
    return {"first_call_s": time.perf_counter() - began}


def time_in_turn(job: Job) -> dict[str, Any]:
    """Times the job's implementations in turn, if all of them compute the same."""
    sides = sides_of(job)
    found = {name: sides(name) for name in job.implementations}
    outputs = Outputs(
        next((side["output_axes"] for side in found.values() if "output_axes" in side), ANY_AXES)
    )
    return measuring.time_in_turn(
        {name: call_of(job, name, side) for name, side in found.items()},
        mode=job.mode,
        precision=job.precision,
        rounds=job.rounds,
        time_again=job.time_again,
        count_flop=job.count_flop,
        as_arrays=outputs.as_arrays,
        aligned=outputs.aligned,
    )


class Outputs:
    """What calls of both sides return, as arrays that can be compared."""

    def __init__(self, output_axes: str | Mapping[str, str]) -> None:
        self.output_axes = output_axes
        self.names: list[str] = []  # PyTorch's, which is called first

    def as_arrays(self, value: Any) -> list[np.ndarray]:
        """The outputs, sorted by their names; or the loss."""
        leaves = named_leaves(value)
        self.names = self.names or sorted(leaves)
        return [measuring.as_numpy(leaves[name]) for name in sorted(leaves)]

    def aligned(self, values: list, reference: list) -> list[np.ndarray]:
        """PyTorch's outputs in JAX's axes."""
        axes = [axes_of(self.output_axes, name) for name in self.names]
        known = [*axes, *axes][: len(reference)]  # of a training step, the loss and its decrease
        return [to_our_axes(*each) for each in zip(reference, values, known, strict=True)]


def _import_libraries(implementation: Implementation) -> None:
    if implementation == "jax":
        import jaxmodels.benchmark.jax_side
    elif implementation == "torchax":
        import jaxmodels.benchmark.torchax_side
    else:
        import jaxmodels.benchmark.torch_side  # noqa: F401


if __name__ == "__main__":
    main()
