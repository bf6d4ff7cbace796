"""Writes the weights and the inputs of one job: `python -m benchmarks.prepare JOB.json ANSWER.json`."""

import sys
from pathlib import Path

import jax

from benchmarks.run import with_files
from jaxmodels.benchmark.worker import Job


def make_weights_here() -> None:
    """Makes weights on the CPU, and compiles little for it: they are made only once."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)


if __name__ == "__main__":
    make_weights_here()
    with_files(Job.read(Path(sys.argv[1])), Path(sys.argv[2]).parent)
    Path(sys.argv[2]).write_text("{}")
