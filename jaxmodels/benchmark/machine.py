"""Versions, cores and matrix products: `python -m jaxmodels.benchmark.machine DEVICE OUT.json CORES`."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxmodels.benchmark.kinds import Device


ROOT = Path(__file__).parents[2]  # of a checkout
BUSY_CORES = 0.3  # a warning is printed when other processes use more than this
GEMM_SIZES = {"cpu": 1536, "cuda": 8192}  # rows and columns of the matrices


class Failure(RuntimeError):
    """A process that measures ended with an error."""


def environment(device: Device, command: str) -> dict[str, Any]:
    """Date, command, commit, machine and versions."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": command,
        "commit": _git("rev-parse", "--short=12", "HEAD")
        + ("-dirty" if _git("status", "--porcelain") else ""),
        "device": _device_name(device),
        "cores": cores(),
        "busy_cores": busy_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "torch", "numpy")},
    }


def short_name(device: str) -> str:
    """The name of a results file: "cpu", or of a GPU what tells it from others, such as "h200"."""
    words = re.sub(r"[^\w-]+", " ", device).lower().removeprefix("nvidia ").split()
    return next((word for word in words if any(letter.isdigit() for letter in word)), "-".join(words))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores are busy now, averaged over `seconds`; None on systems without /proc/stat."""
    ticks = []
    for wait in (seconds, 0):
        try:
            first = Path("/proc/stat").read_text().splitlines()[0]
        except OSError:
            return None
        ticks.append([int(number) for number in first.split()[1:9]])
        time.sleep(wait)
    spent = [after - before for before, after in zip(*ticks, strict=True)]
    idle = spent[3] + spent[4]  # idle, and waiting for a disk
    return round((os.cpu_count() or 1) * (1 - idle / max(sum(spent), 1)), 1)


def busy_warning(busy: float | None) -> str | None:
    """What other processes do to the times, if they keep more than `BUSY_CORES` busy; `busy` is from `busy_cores`."""
    if not busy or busy <= BUSY_CORES:
        return None
    return (
        f"other processes keep {busy} of {cores()} cores busy; that slows PyTorch down most, whose threads wait for "
        "each other, so the ratios will flatter JAX"
    )


def require(device: Device) -> None:
    """Raises ValueError if PyTorch has no such device. Whether JAX has it shows in the first process that uses it."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                f"device must be 'cpu' here: PyTorch {torch.__version__} sees no GPU; got device='cuda'"
            )


def measured_peaks(
    device: Device, folder: Path, threads: int, *, timeout: float | None = None
) -> dict[str, float]:
    """`gemm_peaks` in a process of its own that may use this many cores; Failure after `timeout` seconds."""
    out = folder / "gemm.json"
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "jaxmodels.benchmark.machine", device, str(out), str(threads)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": device, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"matrix products on {device} took longer than {timeout} seconds") from error
    if finished.returncode:
        raise Failure(f"matrix products on {device} {ending(finished)}")
    return json.loads(out.read_text())


def use_cores(threads: int) -> None:
    """Binds this process to this many of its cores; XLA then starts as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def gemm_peaks(device: str) -> dict[str, float]:
    """FLOP/s of a product of two large square matrices in float32 and bfloat16: the faster library's fastest call."""
    import jax
    import jax.numpy as jnp
    import torch

    n = GEMM_SIZES[device]
    peaks = {}
    for precision in ("float32", "bfloat16"):
        a = jnp.ones((n, n), precision)
        product = jax.jit(lambda a: jnp.dot(a, a, precision="highest" if a.dtype == jnp.float32 else None))
        b = torch.ones(n, n, dtype=getattr(torch, precision), device=device)

        def with_jax(product: Callable = product, a: Any = a) -> None:
            product(a).block_until_ready()

        def with_torch(b: Any = b) -> None:
            b @ b
            if device == "cuda":
                torch.cuda.synchronize()

        peaks[precision] = 2 * n**3 / min(_best(with_jax), _best(with_torch))
    return peaks


def ending(process: subprocess.CompletedProcess[str]) -> str:
    """How a process ended, with the last lines of its errors."""
    last = "\n".join(process.stderr.strip().splitlines()[-15:])
    return f"ended with status {process.returncode}:\n{last}"


def _best(call: Callable[[], None]) -> float:
    call()
    times = []
    for _ in range(8):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _git(*arguments: str) -> str:
    """The output of a git command in the repository; empty outside of a checkout."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    use_cores(int(sys.argv[3]))
    Path(sys.argv[2]).write_text(json.dumps(gemm_peaks(sys.argv[1])))
