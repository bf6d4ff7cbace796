"""Runs a small task in a process of its own: python -m tests.training.run_in_process WORKDIR STEPS [SETTING=VALUE …]."""

import os
import resource
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.quick_compilation import FLAGS


os.environ["XLA_FLAGS"] = FLAGS  # one device, unlike in the tests around it

import jax

from jaxmodels.atomic import atomic_write
from jaxmodels.convert import hub
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.mesh import HostsConfig
from jaxmodels.training.run import report
from jaxmodels.training.run.loop import train
from tests.training.small_tasks import TASKS
from tests.training.toy_task import ToyTask


@dataclass(frozen=True, kw_only=True)
class SmallExperiment(Experiment):
    name: str = "toy"  # or a key of TASKS

    def task(self) -> Any:
        if self.name == "toy":
            return ToyTask(patch_dropout=0.5)
        task: Any = TASKS[self.name]()
        task.baselines = dict  # they take longer than all the rest
        task.samples = lambda call: []
        return task


def run(workdir: Path, steps: int, **settings: Any) -> int:
    jax.config.update("jax_disable_most_optimizations", True)  # or a cold cache costs 20 seconds a model
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    settings = {"batch_size": 8, "evaluate_every": 1000, "log_every": 1, **settings}
    return train(SmallExperiment(workdir=workdir, steps=steps, resume=True, **settings), preset="small")


def child(workdir: str, steps: int, settings: dict[str, Any], log: str, killed_in: str = "") -> None:
    """The same in a forked process, whose output goes to a file.

    Args:
      killed_in: "export" or "report": the process kills itself when it has written half of it.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if killed_in == "export":
        hub.write_safetensors = _write_and_die
    if killed_in == "report":
        report.atomic_write = _atomic_write_and_die
    sys.exit(run(Path(workdir), steps, **settings))


def _write_and_die(path: Path, arrays: Any) -> None:
    path.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _atomic_write_and_die(path: Path) -> Generator[Path]:
    with atomic_write(path) as temporary:
        yield temporary
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    words = dict(word.split("=") for word in sys.argv[3:])
    hosts = HostsConfig()
    if "port" in words:
        hosts = HostsConfig(
            coordinator=f"127.0.0.1:{words.pop('port')}", processes=2, process=int(words.pop("process"))
        )
    if "largest_file" in words:  # writes beyond it fail, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(words["largest_file"]),) * 2)
        del words["largest_file"]
    try:
        sys.exit(
            run(Path(sys.argv[1]), int(sys.argv[2]), hosts=hosts, **{k: int(v) for k, v in words.items()})
        )
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
