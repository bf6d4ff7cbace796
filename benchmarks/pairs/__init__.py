"""The five models as pairs, one file each, as anybody's file for `jaxmodels benchmark`. Free of JAX and PyTorch."""

from pathlib import Path

from benchmarks.pairs import colt5, glom, hourglass, mammut, scalable_vit
from benchmarks.workload import BenchmarkPair
from jaxmodels.models import ModelName


FOLDER = Path(__file__).parent
PAIRS: dict[ModelName, BenchmarkPair] = {
    module.PAIR.name: module.PAIR for module in (glom, hourglass, colt5, mammut, scalable_vit)
}
