"""The comparisons of models and of users' pairs that a command asks for; both frameworks are needed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
from flax import nnx

from jaxmodels.compare.command import Job, Progress, is_pair_file
from jaxmodels.compare.engine import compare
from jaxmodels.compare.map_files import with_map
from jaxmodels.compare.pair import Pair
from jaxmodels.compare.pair_files import read_pairs
from jaxmodels.compare.result import Result
from jaxmodels.compare.subjects import default_model, name_of, pair_of
from jaxmodels.compare.training import Training
from jaxmodels.convert.bare_checkpoints import from_checkpoint
from jaxmodels.convert.hub import from_pretrained
from jaxmodels.models import MODEL_NAMES, ModelName


def jobs_of(
    targets: Sequence[str],
    checkpoint: Path | None,
    config: dict[str, Any] | None,
    seed: int,
    options: Mapping[str, Any],
    map_file: Path | None,
    say: Callable[[str], None],
) -> list[Job]:
    """What the words of the command line ask for.

    Args:
      targets: names of models, or files with a `pair()`; all five models where there is none.
      checkpoint, config: weights of one of the models.
      seed: of fresh weights.
      options: arguments of `compare`, and the name of the optimiser or None.
      map_file: of the table of a user's pair.
      say: prints a line.

    Raises:
      ValueError, OSError: a file that gives no pair, or a checkpoint that cannot be read or does not fit.
    """
    # PyTorch's float64 runs supply the noise floor either way; a user's arrays keep JAX's default type.
    if options["dtype"] == "float64" or not any(map(is_pair_file, targets)):
        jax.config.update("jax_enable_x64", True)
    options = _with_training(options)
    if checkpoint is not None:
        if any(map(is_pair_file, targets)):
            raise ValueError("checkpoint is for the five models; a file with a pair() loads its own weights")
        loaded = _load(checkpoint, config, targets, say)
        return [Job(name_of(loaded), lambda progress: compare(pair_of(loaded), progress=progress, **options))]
    if config is not None:
        raise ValueError("config describes a checkpoint; pass --checkpoint with it")

    def of_model(name: ModelName, progress: Progress) -> Result:
        return compare(pair_of(default_model(name, seed)), progress=progress, **options)

    def of_pair(pair: Pair, progress: Progress) -> Result:
        mapped = pair if map_file is None else with_map(pair, map_file)
        return compare(mapped, progress=progress, **options)

    pairs = _pairs_of(targets)
    jobs: list[Job] = []
    for target in targets or MODEL_NAMES:
        if is_pair_file(target):
            folder = Path(target).expanduser().parent
            jobs += [Job(pair.name, partial(of_pair, pair), folder) for pair in pairs[target]]
        else:
            jobs.append(Job(target, partial(of_model, cast("ModelName", target))))
    if map_file is not None and (len(jobs) != 1 or not is_pair_file(targets[0])):
        raise ValueError(f"map is for one pair of a user's file; got map={map_file}, {len(jobs)} comparisons")
    return jobs


def _pairs_of(targets: Sequence[str]) -> dict[str, list[Pair]]:
    """The pairs of each file. Where two files have a pair of the same name, the names get the file's path.

    Raises:
      ValueError: a word that is given twice.
    """
    repeated = [target for target, count in Counter(targets).items() if count > 1]
    if repeated:
        raise ValueError(
            f"models must name each model or file once; got {repeated[0]} {targets.count(repeated[0])} times"
        )
    pairs = {target: read_pairs(Path(target).expanduser()) for target in targets if is_pair_file(target)}
    names = Counter([target for target in targets if target not in pairs])
    names.update(pair.name for found in pairs.values() for pair in found)
    return {
        target: [
            replace(pair, name=f"{pair.name} ({target})") if names[pair.name] > 1 else pair for pair in found
        ]
        for target, found in pairs.items()
    }


def _with_training(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `compare`, with the optimiser of this name."""
    name = options.get("optimizer")
    arguments = {key: value for key, value in options.items() if key != "optimizer"}
    return arguments if name is None else arguments | {"training": Training(optimizer=name)}


def _load(
    checkpoint: Path, config: dict[str, Any] | None, models: Sequence[str], say: Callable[[str], None]
) -> nnx.Module:
    if checkpoint.is_dir():
        if config is not None:
            raise ValueError(
                f"config is for bare checkpoints; the folder {checkpoint} has its own config.json"
            )
        model = from_pretrained(checkpoint)
    else:
        model, assumed = from_checkpoint(checkpoint, config=config)
        if assumed:
            say(f"not visible in the checkpoint, taken as their defaults: {', '.join(assumed)}")
    if len(models) > 1 or (models and models[0] != name_of(model)):
        raise ValueError(f"{checkpoint} holds a {name_of(model)}; got models={' '.join(models)}")
    return model
