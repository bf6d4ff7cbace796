"""One process, one measurement of a model: `python -m benchmarks.worker JOB.json RESULT.json`.

A process that holds one implementation measures its first call and its peak memory. A process that holds several
times them in turn.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.problem import Problem, Size
from jaxmodels.benchmark import measuring
from jaxmodels.benchmark.kinds import Device, Implementation, Mode, Precision
from jaxmodels.benchmark.machine import use_cores


if TYPE_CHECKING:  # a process that measures PyTorch must not load JAX
    from jaxmodels.models import ModelName


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process measures.

    Attributes:
      model, size: name the workload.
      mode, precision: forward pass or training step, and the type of the computation.
      implementations: one, whose first call and memory are measured; or several, which are timed in turn.
      rounds: how often each implementation is timed.
      threads: cores that every implementation may use.
      weights, problem: files with the shared weights and the `Problem`.
      point: index of a point on the model's scaling curve, which then takes the place of `size`.
      device: where every implementation runs.
      attention: JAX's attention kernel, see `jaxmodels.nn.attend`.
      time_again: also time the last implementation as if it were one more, named "again".
      count_flop: also count the FLOP of eager PyTorch where several are timed.
      compile_only: of one implementation, measure nothing but the first call; JAX only compiles for it.
    """

    model: "ModelName"
    size: Size
    mode: Mode
    precision: Precision
    implementations: tuple[Implementation, ...]
    rounds: int
    threads: int
    weights: str
    problem: str
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


def side(job: Job, implementation: Implementation) -> Callable[[], Any]:
    """The call to measure. Only the libraries of this implementation are imported."""
    problem, weights = Problem.read(Path(job.problem)), Path(job.weights)
    if implementation == "jax":
        import jax

        from benchmarks.jax_side import JaxSide
        from benchmarks.sizes import workload_at

        if job.device == "cuda" and job.precision == "float32":
            # By default JAX multiplies float32 as TensorFloat32 on a GPU; PyTorch does not.
            jax.config.update("jax_default_matmul_precision", "highest")
        workload, _ = workload_at(job.model, job.size, job.point)
        return JaxSide(workload, weights, problem.inputs, job.mode, job.precision, attention=job.attention)
    if implementation == "torchax":
        from benchmarks.torchax_side import TorchaxSide

        return TorchaxSide(problem, weights, job.mode, job.precision)
    import torch

    from benchmarks.torch_side import TorchSide

    torch.set_num_threads(job.threads)
    compiled = implementation == "compile"
    return TorchSide(problem, weights, job.mode, job.precision, compiled=compiled, device=job.device)


def measure_alone(job: Job) -> dict[str, Any]:
    """First call, memory and FLOP of the job's one implementation."""
    (implementation,) = job.implementations
    _import_libraries(implementation)
    return measuring.measure_alone(lambda: side(job, implementation), implementation, job.device)


def compile_alone(job: Job) -> dict[str, Any]:
    """First call of one implementation, whose programs later processes find in the caches.

    JAX compiles without running, so that many such processes fit in the memory of one device.
    """
    (implementation,) = job.implementations
    _import_libraries(implementation)
    call: Any = side(job, implementation)
    began = time.perf_counter()
    if implementation == "jax":
        call.lowered().compile()
    else:
        call()
    return {"first_call_s": time.perf_counter() - began}


def time_in_turn(job: Job) -> dict[str, Any]:
    """Times the job's implementations in turn, if all of them compute the same."""
    return measuring.time_in_turn(
        {name: side(job, name) for name in job.implementations},
        mode=job.mode,
        precision=job.precision,
        rounds=job.rounds,
        time_again=job.time_again,
        count_flop=job.count_flop,
    )


def _import_libraries(implementation: Implementation) -> None:
    if implementation == "jax":
        import benchmarks.jax_side
    elif implementation == "torchax":
        import benchmarks.torchax_side
    else:
        import benchmarks.torch_side  # noqa: F401


if __name__ == "__main__":
    main()
