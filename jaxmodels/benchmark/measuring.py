"""Measures one implementation alone, or several in turn: A B C C B A, so that whatever else happens on the machine
happens to all of them. An implementation is a function without arguments that runs one call to its end.
"""

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmodels.benchmark.kinds import Device, Implementation, Mode, Precision


Call = Callable[[], Any]  # returns the outputs, or the loss before the training step

# The largest difference, relative to the largest output or loss, with which timing makes sense. Parity has tests of
# its own. bfloat16 has 8 bits.
AGREEMENT: dict[Precision, float] = {"float32": 2e-3, "bfloat16": 0.1}
# Decreases of the loss in one step may differ by 5 × AGREEMENT: they are small differences of large numbers. They are
# compared because a first step changes the loss so little that one which does nothing would pass.
DECREASE_WEIGHT = 0.2
WARMUP_CALLS = 4  # after which the allocator returns the same memory for every call
MIN_SECONDS = 0.06  # that one turn lasts, so that the resolution of the clock does not matter


def measure_alone(make: Callable[[], Any], implementation: Implementation, device: Device) -> dict[str, Any]:
    """First call, memory and FLOP of one implementation in a process that holds no other.

    Args:
      make: builds the call; the libraries are imported before.
      implementation: which one it is; JAX's call also has `lowered`.
      device: where it runs.
    """
    gc.freeze()  # the garbage collector skips what was imported, as in `jaxmodels train`
    before = resident("VmRSS")
    call = make()
    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    for _ in range(WARMUP_CALLS):
        call()
    release_memory()
    at_rest = None if device == "cuda" else resident("VmRSS")
    reset_peak()
    for _ in range(3):
        call()
    result: dict[str, Any] = {
        "first_call_s": first,
        "peak_mb": device_peak(implementation) if device == "cuda" else resident("VmHWM"),
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


def time_in_turn(
    calls: Mapping[Implementation, Call],
    *,
    mode: Mode,
    precision: Precision,
    rounds: int,
    time_again: bool = False,
    count_flop: bool = False,
    as_arrays: Callable[[Any], list[np.ndarray]] = lambda value: [as_numpy(value)],
    aligned: Callable[[list, list], list] = lambda values, reference: reference,
) -> dict[str, Any]:
    """Times several implementations in turn, if all of them compute the same.

    Args:
      calls: the first is the one that the others must agree with.
      mode, precision: what a call does, which decides how closely they must agree.
      rounds: how often each is timed.
      time_again: also time the last one as if it were one more, named "again".
      count_flop: also count the FLOP of eager PyTorch.
      as_arrays: the numbers to compare in what a call returns.
      aligned: JAX's arrays and the first implementation's -> the latter in JAX's axes.
    """
    gc.freeze()
    firsts, values = {}, {}
    for name, call in calls.items():
        began = time.perf_counter()
        value = call()
        firsts[name] = time.perf_counter() - began
        values[name] = as_arrays(value)
        if mode == "train":  # also the decrease of the loss in one step
            values[name].append(np.asarray(values[name][0] - as_arrays(call())[0]))
    reference = values[next(iter(calls))]
    weights = (1.0, DECREASE_WEIGHT) if mode == "train" else [1.0] * len(reference)
    errors = {
        name: difference(found, aligned(found, reference) if name == "jax" else reference, weights)
        for name, found in values.items()
    }
    agreed = all(error <= AGREEMENT[precision] for error in errors.values())
    # `again` is timed first and the same implementation last, so that both have the same neighbours.
    again = {"again": list(calls.values())[-1]} if time_again else {}
    times = interleaved(again | dict(calls), rounds=rounds) if agreed else {}
    result = {"times": times, "warm_first_call_s": firsts, "errors": errors}
    if count_flop and "eager" in calls:
        from jaxmodels.benchmark.flop import count

        result["flop"] = count(calls["eager"])
    return result


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


def difference(
    values: list[np.ndarray],
    reference: list[np.ndarray],
    weights: Sequence[float] = (1.0, DECREASE_WEIGHT),
) -> float:
    """The largest difference relative to the largest number of the reference; NaN if a value is NaN.

    Args:
      values, reference: the outputs; or the loss and its decrease in one step.
      weights: how much each counts.
    """
    if [a.shape for a in values] != [b.shape for b in reference]:
        return float("inf")
    differences = [
        weight * np.abs(a - b).max() / np.maximum(np.abs(b).max(), 1e-30)
        for a, b, weight in zip(values, reference, weights, strict=False)
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
