"""One process, one measurement: `python -m benchmarks.worker JOB.json RESULT.json`.

A process that holds one side alone measures its first call and its peak memory; one that holds all sides
times them in turn, A B C A B C, so that whatever else happens on the machine happens to all of them.
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
from typing import Any, Literal

import numpy as np

from benchmarks.machine import keep_to
from benchmarks.problem import Device, Implementation, Mode, ModelName, Precision, Problem, Size


# How far outputs or losses may lie apart, relative to the largest: an agreement check before timing, not the parity
# suite. bfloat16 has 8 bits.
AGREEMENT: dict[Precision, float] = {"float32": 2e-3, "bfloat16": 0.1}
# By how much of it a step of training lowers the loss may lie five times as far apart: it is a small difference of
# large numbers. Without it a step that does nothing would pass, since the first one moves a loss by a few thousandths.
OF_THE_STEP = 0.2
# Calls until the allocator hands out the same memory every time: before, a piece that lies between two others may be
# left unused and another be taken.
SETTLING = 4
TIMED = 0.06  # seconds that one turn of one side lasts at least, so that the clock's grain does not matter


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process is asked for.

    Attributes:
      model, size: a workload of the table; with `point`, that place of the model's curve instead.
      implementations: who takes part; one alone is also asked for its first call and peak memory.
      rounds: how many turns each side gets.
      threads: of both sides.
      weights, problem: files of the shared weights and of the `Problem`.
      device: "cpu", or "cuda" for both sides.
      attention: of the JAX side, see `jaxmodels.nn.attend`.
      noise: time the last implementation a second time under the name "again".
    """

    model: ModelName
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
    attention: Literal["xla", "cudnn"] = "xla"
    noise: bool = False

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Job":
        fields = json.loads(path.read_text())
        return cls(**fields | {"implementations": tuple(fields["implementations"])})


def main() -> None:
    job, out = Job.read(Path(sys.argv[1])), Path(sys.argv[2])
    keep_to(job.threads)
    result = alone(job) if len(job.implementations) == 1 else together(job)
    out.write_text(json.dumps(result))


def side(job: Job, implementation: Implementation) -> Callable[[], Any]:
    """The callable to be measured; only the libraries of this side are imported."""
    problem, weights = Problem.read(Path(job.problem)), Path(job.weights)
    if implementation == "jax":
        import jax

        from benchmarks.jax_side import JaxSide
        from benchmarks.sizes import workload_at

        if job.device == "cuda" and job.precision == "float32":
            # JAX would multiply as TensorFloat32, PyTorch does not.
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


def alone(job: Job) -> dict[str, Any]:
    """First call, steady memory and arithmetic of one side."""
    implementation = job.implementations[0]
    _import(implementation)
    gc.freeze()  # the collector skips what was imported, as in `jaxmodels train`
    before = resident("VmRSS")
    call: Any = side(job, implementation)
    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    for _ in range(SETTLING):
        call()
    trim()
    at_rest = None if job.device == "cuda" else resident("VmRSS")
    forget_peak()
    for _ in range(3):
        call()
    result: dict[str, Any] = {
        "first_call_s": first,
        "peak_mb": device_peak(implementation) if job.device == "cuda" else resident("VmHWM"),
        "libraries_mb": before,
        "rest_mb": at_rest,
    }
    if implementation == "eager":
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            call()
        result["flop"] = counter.get_total_flops()
    if implementation == "jax":
        cost = call.lowered().compile().cost_analysis() or {}
        result["xla_flop"], result["xla_bytes"] = cost.get("flops"), cost.get("bytes accessed")
    return result


def together(job: Job) -> dict[str, Any]:
    """All sides in one process: first the agreement of what they compute, then, if they agree, their times in turn."""
    calls = {name: side(job, name) for name in job.implementations}
    gc.freeze()
    firsts, values = {}, {}
    for name, call in calls.items():
        began = time.perf_counter()
        value = call()
        firsts[name] = time.perf_counter() - began
        values[name] = [as_numpy(value)]
        if job.mode == "train":  # also what the step did to the loss
            values[name].append(values[name][0] - as_numpy(call()))
    errors = {name: disagreement(values[name], values[job.implementations[0]]) for name in calls}
    agreed = all(error <= AGREEMENT[job.precision] for error in errors.values())
    # At the other end of the line, so that both see the same neighbours.
    again = {"again": calls[job.implementations[-1]]} if job.noise else {}
    times = interleaved(again | calls, rounds=job.rounds) if agreed else {}
    return {"times": times, "warm_first_call_s": firsts, "errors": errors}


def interleaved(calls: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of a call, one number for every round; the order turns round every time."""
    repeats = {}
    for name, call in calls.items():
        call()
        began = time.perf_counter()
        call()
        repeats[name] = max(1, round(TIMED / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            call = calls[name]
            if repeats[name] > 1:
                call()  # the caches belong to the side that ran before
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


def disagreement(values: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest number of the reference; not a number where one is none.

    Args:
      values, reference: the outputs; or the loss and what a step took from it, of which `OF_THE_STEP` counts.
    """
    if [a.shape for a in values] != [b.shape for b in reference]:
        return float("inf")
    distances = [
        share * np.abs(a - b).max() / np.maximum(np.abs(b).max(), 1e-30)
        for a, b, share in zip(values, reference, (1.0, OF_THE_STEP), strict=False)
    ]
    return float(np.max(distances))  # Python's max would pass over a NaN


def resident(field: Literal["VmRSS", "VmHWM"]) -> float | None:
    """Memory of this process in MB, now or at its peak; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(field)), None)


def forget_peak() -> None:
    """From here on `resident("VmHWM")` is the peak of what follows."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def trim() -> None:
    """Gives back what building and compiling left in the allocator."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def device_peak(implementation: Implementation) -> float | None:
    """Peak memory on the accelerator in MB, since the process began."""
    if implementation in ("jax", "torchax"):
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use", 0) / 1e6 or None
    import torch

    return torch.cuda.max_memory_allocated() / 1e6


def _import(implementation: Implementation) -> None:
    if implementation == "jax":
        import benchmarks.jax_side
    elif implementation == "torchax":
        import benchmarks.torchax_side
    else:
        import benchmarks.torch_side  # noqa: F401


if __name__ == "__main__":
    main()
