"""One process, one measurement of a pair: `python -m jaxmodels.benchmark.pair_worker JOB.json RESULT.json`."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import jax
import torch

from jaxmodels.benchmark import measuring
from jaxmodels.benchmark.kinds import Device, Implementation, Mode
from jaxmodels.benchmark.machine import use_cores
from jaxmodels.benchmark.pair_sides import JaxSide, Outputs, TorchSide
from jaxmodels.compare.pair import Pair
from jaxmodels.compare.pair_files import read_pairs
from jaxmodels.compare.preparation import Subject, prepare
from jaxmodels.compare.subjects import default_model, pair_of
from jaxmodels.models import ModelName


@dataclass(frozen=True, kw_only=True)
class PairJob:
    """What one process measures, in float32.

    Attributes:
      target: a file with a `pair()`, or the name of one of the five models.
      number: which of the file's pairs.
      mode, implementations, rounds, threads, device, time_again: as in `measuring` and `processes`.
    """

    target: str
    number: int
    mode: Mode
    implementations: tuple[Implementation, ...]
    rounds: int
    threads: int
    device: Device = "cpu"
    time_again: bool = False

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "PairJob":
        fields = json.loads(path.read_text())
        return cls(**fields | {"implementations": tuple(fields["implementations"])})


def pairs_of(target: str) -> list[Pair]:
    """The pairs of a file, or the one of a model.

    Raises:
      FileNotFoundError, PairError: as `read_pairs`.
    """
    if target.endswith(".py"):
        return read_pairs(Path(target).expanduser())
    return [pair_of(default_model(cast("ModelName", target), 0))]


def side(job: PairJob, subject: Subject, implementation: Implementation) -> Any:
    """The call to measure."""
    if implementation == "jax":
        return JaxSide(subject, job.mode)
    return TorchSide(subject, job.mode, compiled=implementation == "compile", device=job.device)


def measure(job: PairJob) -> dict[str, Any]:
    """First call and memory of one implementation, or the times of several in turn."""

    def prepared() -> Subject:
        return prepare(pairs_of(job.target)[job.number], "float32")

    if len(job.implementations) == 1:
        (name,) = job.implementations
        return measuring.measure_alone(lambda: side(job, prepared(), name), name, job.device)
    subject = prepared()
    outputs = Outputs(subject.pair)
    return measuring.time_in_turn(
        {name: side(job, subject, name) for name in job.implementations},
        mode=job.mode,
        precision="float32",
        rounds=job.rounds,
        time_again=job.time_again,
        as_arrays=outputs.as_arrays,
        aligned=outputs.aligned,
    )


def main() -> None:
    job, out = PairJob.read(Path(sys.argv[1])), Path(sys.argv[2])
    use_cores(job.threads)
    torch.set_num_threads(job.threads)
    if job.device == "cuda":  # by default JAX multiplies float32 as TensorFloat32 on a GPU; PyTorch does not
        jax.config.update("jax_default_matmul_precision", "highest")
    out.write_text(json.dumps(measure(job)))


if __name__ == "__main__":
    main()
