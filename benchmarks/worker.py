"""One process, one measurement: `python -m benchmarks.worker JOB.json RESULT.json`.

A process that holds one implementation measures its first call and its peak memory. A process that holds several
times them in turn, A B C C B A, so that whatever else happens on the machine happens to all of them.
"""

import contextlib
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.problem import Problem, Size
from jaxmodels.benchmark.kinds import Device, Implementation, Mode, Precision
from jaxmodels.benchmark.machine import use_cores


if TYPE_CHECKING:  # a process that measures PyTorch must not load JAX
    from jaxmodels.models import ModelName

# The largest difference, relative to the largest output or loss, with which timing makes sense. Parity has tests of
# its own. bfloat16 has 8 bits.
AGREEMENT: dict[Precision, float] = {"float32": 2e-3, "bfloat16": 0.1}
# Decreases of the loss in one step may differ by 5 × AGREEMENT: they are small differences of large numbers. They are
# compared because a first step changes the loss so little that one which does nothing would pass.
DECREASE_WEIGHT = 0.2
WARMUP_CALLS = 4  # after which the allocator returns the same memory for every call
MIN_SECONDS = 0.06  # that one turn lasts, so that the resolution of the clock does not matter


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
    """First call, memory and FLOP of one implementation in a process that holds no other."""
    implementation = job.implementations[0]
    _import_libraries(implementation)
    gc.freeze()  # the garbage collector skips what was imported, as in `jaxmodels train`
    before = resident("VmRSS")
    call: Any = side(job, implementation)
    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    for _ in range(WARMUP_CALLS):
        call()
    release_memory()
    at_rest = None if job.device == "cuda" else resident("VmRSS")
    reset_peak()
    for _ in range(3):
        call()
    result: dict[str, Any] = {
        "first_call_s": first,
        "peak_mb": device_peak(implementation) if job.device == "cuda" else resident("VmHWM"),
        "libraries_mb": before,
        "rest_mb": at_rest,
    }
    if implementation == "eager":
        from jaxmodels.benchmark.flop import count

        result["flop"] = count(call)
    if implementation == "jax":
        cost = call.lowered().compile().cost_analysis() or {}
        result["xla_flop"], result["xla_bytes"] = cost.get("flops"), cost.get("bytes accessed")
    return result


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
    """Times several implementations in turn, if all of them compute the same."""
    calls = {name: side(job, name) for name in job.implementations}
    gc.freeze()
    firsts, values = {}, {}
    for name, call in calls.items():
        began = time.perf_counter()
        value = call()
        firsts[name] = time.perf_counter() - began
        values[name] = [as_numpy(value)]
        if job.mode == "train":  # also the decrease of the loss in one step
            values[name].append(values[name][0] - as_numpy(call()))
    errors = {name: difference(values[name], values[job.implementations[0]]) for name in calls}
    agreed = all(error <= AGREEMENT[job.precision] for error in errors.values())
    # `again` is timed first and the same implementation last, so that both have the same neighbours.
    again = {"again": calls[job.implementations[-1]]} if job.time_again else {}
    times = interleaved(again | calls, rounds=job.rounds) if agreed else {}
    found = {"times": times, "warm_first_call_s": firsts, "errors": errors}
    if job.count_flop and "eager" in calls:
        from jaxmodels.benchmark.flop import count

        found["flop"] = count(calls["eager"])
    return found


def interleaved(calls: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of a call for every round. The order is reversed from round to round."""
    repeats = {}
    for name, call in calls.items():
        call()
        began = time.perf_counter()
        call()
        repeats[name] = max(1, round(MIN_SECONDS / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            call = calls[name]
            if repeats[name] > 1:
                call()  # the processor's caches still hold the data of the implementation before
            began = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - began) / repeats[name])
    return times


def as_numpy(value: Any) -> np.ndarray:
    """An array of either library as float32."""
    if hasattr(value, "detach"):
        return value.detach().float().cpu().numpy()
    return np.asarray(value).astype(np.float32)


def difference(values: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """The largest difference relative to the largest number of the reference; NaN if a value is NaN.

    Args:
      values, reference: the outputs; or the loss and its decrease in one step, which counts `DECREASE_WEIGHT`.
    """
    if [a.shape for a in values] != [b.shape for b in reference]:
        return float("inf")
    differences = [
        weight * np.abs(a - b).max() / np.maximum(np.abs(b).max(), 1e-30)
        for a, b, weight in zip(values, reference, (1.0, DECREASE_WEIGHT), strict=False)
    ]
    return float(np.max(differences))  # Python's max would ignore a NaN


def resident(field: Literal["VmRSS", "VmHWM"]) -> float | None:
    """Resident memory of this process in MB, now ("VmRSS") or at its peak ("VmHWM"); None without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(field)), None)


def reset_peak() -> None:
    """Makes `resident("VmHWM")` the peak from now on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def release_memory() -> None:
    """Returns memory to the system that building and compiling took and freed."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def device_peak(implementation: Implementation) -> float | None:
    """Peak memory on the accelerator in MB since the process began; None if the device does not tell."""
    if implementation in ("jax", "torchax"):
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use", 0) / 1e6 or None
    import torch

    return torch.cuda.max_memory_allocated() / 1e6


def _import_libraries(implementation: Implementation) -> None:
    if implementation == "jax":
        import benchmarks.jax_side
    elif implementation == "torchax":
        import benchmarks.torchax_side
    else:
        import benchmarks.torch_side  # noqa: F401


if __name__ == "__main__":
    main()
