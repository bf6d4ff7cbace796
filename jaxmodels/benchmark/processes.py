"""Processes that measure: their surroundings, how they end, and whether what they hold agrees."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmodels.benchmark.kinds import Device, Precision
from jaxmodels.benchmark.machine import Failure, ending
from jaxmodels.benchmark.measuring import AGREEMENT
from jaxmodels.training.allocator import ALLOCATOR_VARIABLES


PROCESS_TIMEOUT = 1800  # seconds


class Disagreement(RuntimeError):
    """Two implementations in a row do not compute the same."""


class Stopped(Failure):
    """A process took too long and was stopped."""


def last_error(text: str) -> str:
    """The last line of a traceback that names an error."""
    named = [line for line in text.splitlines() if re.match(r"[\w.]+(Error|Exception|NotFound): ", line)]
    return named[-1] if named else text.strip().rpartition("\n")[2]


def environment_of(folder: Path, device: Device, threads: int) -> dict[str, str]:
    """The environment variables of a measuring process, whose caches are in `folder`."""
    return (
        os.environ
        | ALLOCATOR_VARIABLES
        | {
            # Caches begin empty: the process that measures the first call compiles, the later ones find its programs.
            "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_PLATFORMS": device,
            "OMP_NUM_THREADS": str(threads),
        }
    )


def answer_of(
    words: list[str],
    answer: Path,
    *,
    who: str,
    environment: dict[str, str],
    timeout: float = PROCESS_TIMEOUT,
    cwd: Path | None = None,
) -> dict[str, Any]:
    """Runs a program that writes JSON into the file `answer`, and returns it.

    Raises:
      Stopped: the process took longer than `timeout`; `who` says what it did.
      Failure: the process ended with an error.
    """
    finished = run_to_end(words, environment, timeout, cwd)
    if finished is None:
        raise Stopped(f"{who} was stopped after {timeout:.0f} seconds")
    if finished.returncode:
        raise Failure(f"{who} {ending(finished)}")
    return json.loads(answer.read_text())


def run_to_end(
    words: list[str], environment: dict[str, str], timeout: float, cwd: Path | None = None
) -> subprocess.CompletedProcess[str] | None:
    """A process that ended by itself; None if it had to be stopped, with all that it started."""
    with subprocess.Popen(
        words,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # torch.compile starts processes of its own
    ) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


def require_agreement(who: str, errors: Mapping[str, float], precision: Precision, *, advice: str) -> None:
    """Checks that all implementations computed the same as the first one.

    Args:
      who: names the row.
      errors: of each implementation.
      precision: that of the row.
      advice: what to do next, at the end of the message.

    Raises:
      Disagreement: one differs by more than rounding explains.
    """
    limit, first = AGREEMENT[precision], next(iter(errors))
    for name, error in errors.items():
        if not error <= limit:
            raise Disagreement(
                f"{who}: {name} differs from {first} by {error:.2g} of the largest output, more than {limit:g}; "
                f"nothing was timed. {advice}."
            )
