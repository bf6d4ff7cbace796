"""Which cells are measured, each in processes of its own, and what comes of them."""

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import ROOT, Failure, cores
from benchmarks.problem import IMPLEMENTATIONS, Device, Implementation, Mode, ModelName, Precision, Size
from benchmarks.sizes import CURVES, build, moved, problem, workload_at
from benchmarks.worker import AGREEMENT, Job
from jaxmodels.convert.core import to_state_dict
from jaxmodels.convert.files import write_safetensors
from jaxmodels.training.allocator import KEEPING


PATIENCE = 1800  # seconds for one process


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
      models, sizes, modes, precisions: the cells are all their combinations.
      implementations: the columns; torchax is left out, with the reason, where it cannot be imported.
      rounds: turns of every side.
      alone: also measure first call and memory in processes that hold one side.
      curves: also measure the scaling curves.
      device, threads: of both sides.
      attention: of JAX in bfloat16, see `jaxmodels.nn.attend`.
    """

    models: tuple[ModelName, ...]
    sizes: tuple[Size, ...]
    modes: tuple[Mode, ...] = ("forward", "train")
    precisions: tuple[Precision, ...] = ("float32",)
    implementations: tuple[Implementation, ...] = ("eager", "compile", "torchax", "jax")
    rounds: int = 15
    alone: bool = True
    curves: bool = False
    device: Device = "cpu"
    threads: int = os.cpu_count() or 1
    attention: Literal["xla", "cudnn"] = "xla"

    def __post_init__(self) -> None:
        for name in ("models", "sizes", "modes", "precisions", "implementations"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must name one or more, each once; got {' '.join(given) or 'none'}")
        if self.rounds < 2:
            raise ValueError(f"rounds must be at least 2, for quartiles; got {self.rounds}")
        if self.attention == "cudnn" and (self.device != "cuda" or "bfloat16" not in self.precisions):
            raise ValueError(
                "attention must be 'xla' without --device cuda and bfloat16: cuDNN's kernel needs both; "
                "got attention='cudnn'"
            )
        if not 1 <= self.threads <= cores():
            raise ValueError(
                f"threads must be between 1 and {cores()}, the cores this process may use; got {self.threads}"
            )


class Disagreement(RuntimeError):
    """Two sides of a cell do not compute the same."""


def torchax_absence() -> str | None:
    """Why torchax cannot take part, or None if it can."""
    try:
        versions = f"torchax {metadata.version('torchax')} with torch {metadata.version('torch')}"
    except metadata.PackageNotFoundError:
        return "not installed"
    program = "import torchax; torchax.default_env()"
    probe = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return f"{versions}: {last_error(probe.stderr)}" if probe.returncode else None


def last_error(text: str) -> str:
    """The last line that names an error."""
    named = [line for line in text.splitlines() if re.match(r"[\w.]+(Error|Exception|NotFound): ", line)]
    return named[-1] if named else text.strip().rpartition("\n")[2]


def jobs(plan: Plan, implementations: tuple[Implementation, ...]) -> list[Job]:
    """The timing job of every cell, then those of the curves."""
    common: dict[str, Any] = {
        "implementations": implementations,
        "threads": plan.threads,
        "device": plan.device,
        "weights": "",
        "problem": "",
    }
    cells = [
        Job(
            model=m,
            size=s,
            mode=mode,
            precision=p,
            rounds=plan.rounds,
            noise=True,
            attention=plan.attention if p == "bfloat16" else "xla",
            **common,
        )
        for p in plan.precisions
        for s in plan.sizes
        for m in plan.models
        for mode in plan.modes
    ]
    points = [
        Job(model=m, size="medium", mode="forward", precision="float32", rounds=5, point=i, **common)
        for m in plan.models
        for i in range(len(CURVES[m][1]))
        if plan.curves
    ]
    sides = tuple(name for name in ("eager", "jax") if name in implementations)
    return cells + [replace(job, implementations=sides) for job in points]


def measure(
    plan: Plan, folder: Path, said: Callable[[str, int, int], None]
) -> Iterator[tuple[Job, list[dict[str, Any]]]]:
    """Every cell in turn: one result for each implementation.

    Args:
      plan: what to measure.
      folder: for weights, compilation caches and the processes' files; empty.
      said: is told what is being done, how many cells are done, and how many there are.

    Raises:
      Disagreement: two sides do not compute the same; nothing is timed then.
      Failure: a process died; the message holds its last words. Where it is torchax's own, only its cell stays empty.
    """
    absence = torchax_absence()
    chosen = tuple(
        i for i in IMPLEMENTATIONS if i in plan.implementations and (i != "torchax" or absence is None)
    )
    if not chosen:
        raise ValueError(f"implementations must name one besides torchax, which is missing: {absence}")
    planned = jobs(plan, chosen)
    for number, job in enumerate(planned):
        job = prepared(job, folder)
        own: dict[Implementation, dict[str, Any]] = {name: {} for name in job.implementations}
        if plan.alone:
            for name in job.implementations:
                said(f"{title(job)}: first call and memory of {name}", number, len(planned))
                one = replace(job, implementations=(name,), noise=False)
                try:
                    own[name] = process(one, folder, f"{number}-{name}")
                except Failure as error:
                    if name != "torchax":
                        raise
                    own[name] = {"failure": last_error(str(error))}
        job = replace(job, implementations=tuple(n for n in own if "failure" not in own[n]))
        said(f"{title(job)}: timing", number, len(planned))
        shared = process(job, folder, f"{number}-all") if len(job.implementations) > 1 else None
        if shared is not None:
            check(job, shared["errors"])
        yield job, [result(job, name, own, shared) for name in own]


def prepared(job: Job, folder: Path) -> Job:
    """The job with its weights and its problem written into the folder."""
    stem = f"{job.model}-{job.size}-{job.point}"
    weights, task = folder / f"{stem}.safetensors", folder / f"{stem}.pickle"
    workload, side = workload_at(job.model, job.size, job.point)
    if not weights.exists():
        write_safetensors(weights, to_state_dict(moved(build(workload))))
        problem(job.model, workload, side).write(task)
    return replace(job, weights=str(weights), problem=str(task))


def process(job: Job, folder: Path, name: str) -> dict[str, Any]:
    """Runs one job in a process of its own."""
    request, answer = folder / f"{name}.job.json", folder / f"{name}.json"
    job.write(request)
    environment = (
        os.environ
        | KEEPING
        | {
            # Programs are compiled once per run of the benchmark, by the process that measures the first call.
            "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_PLATFORMS": job.device,
            "OMP_NUM_THREADS": str(job.threads),
        }
    )
    who = f"{title(job)} with {', '.join(job.implementations)}"
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", str(request), str(answer)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{who} was given up after {PATIENCE} seconds") from error
    if finished.returncode:
        last = "\n".join(finished.stderr.strip().splitlines()[-15:])
        raise Failure(f"{who} ended with status {finished.returncode}:\n{last}")
    return json.loads(answer.read_text())


def check(job: Job, errors: dict[str, float]) -> None:
    """Raises Disagreement where a side lies further off than rounding explains."""
    limit = AGREEMENT[job.precision]
    for name, error in errors.items():
        if not error <= limit:
            raise Disagreement(
                f"{title(job)}: {name} differs from {job.implementations[0]} by {error:.2g} of the largest "
                f"output, more than {limit:g}; nothing was timed. `jaxmodels compare {job.model}` finds where."
            )


def result(
    job: Job,
    name: Implementation,
    own: dict[Implementation, dict[str, Any]],
    shared: dict[str, Any] | None,
) -> dict[str, Any]:
    """One cell of results.json."""
    times = shared["times"].get(name, []) if shared else []
    q1, median, q3 = (
        (1000 * t for t in statistics.quantiles(times, n=4, method="inclusive"))
        if len(times) > 1
        else [None] * 3
    )
    flop = own.get("eager", {}).get("flop")
    first = own[name].get("first_call_s")
    warm = shared["warm_first_call_s"].get(name) if shared else None
    cell = {
        "model": job.model,
        "mode": job.mode,
        "size": job.size,
        "precision": job.precision,
        "implementation": name,
        "median_ms": median,
        "q1_ms": q1,
        "q3_ms": q3,
        "first_call_s": warm if first is None else first,
        "warm_first_call_s": None if first is None else warm,
        "peak_mb": own[name].get("peak_mb"),
        "libraries_mb": own[name].get("libraries_mb"),
        "rest_mb": own[name].get("rest_mb"),
        "flop": flop,
        "flop_per_s": flop / median * 1000 if flop and median else None,
        "error": shared["errors"].get(name) if shared else None,
        "rounds_ms": [round(1000 * t, 4) for t in times],
    }
    if "failure" in own[name]:
        cell["failure"] = own[name]["failure"]
    if name == "jax":
        cell |= {key: own[name].get(key) for key in ("xla_flop", "xla_bytes")}
    if shared and name == job.implementations[-1] and "again" in shared["times"]:
        cell["again_ms"] = 1000 * statistics.median(shared["times"]["again"])
    if job.point is not None:
        axis, values, _ = CURVES[job.model]
        cell |= {"curve": axis, "at": values[job.point]}
    return cell


def title(job: Job) -> str:
    place = job.size if job.point is None else f"curve at {CURVES[job.model][1][job.point]}"
    return f"{job.model} {place} {job.mode} {job.precision}"
