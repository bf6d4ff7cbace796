"""`jaxmodels train`: presets as subcommands, every field as a typed flag."""

import ast
import gc
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ForwardRef

import jax
import tyro

from jaxmodels.checks import require_name
from jaxmodels.command_line import plain_help, require_no_empty
from jaxmodels.models.hourglass_config import as_depth
from jaxmodels.training.allocator import keep_freed_memory
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.presets import DESCRIPTIONS, PRESETS
from jaxmodels.training.run.loop import train


def run(arguments: list[str]) -> int:
    """Parses what follows `jaxmodels train`, and trains; returns the exit status.

    Raises:
      ValueError, OSError, ModuleNotFoundError: wrong settings or data, or a missing extra.
    """
    experiment = parse(arguments)
    given = {word.partition("=")[0][2:].replace("-", "_") for word in arguments if word.startswith("--")}
    keep_freed_memory()
    gc.freeze()  # what was imported is no garbage: a fifth of the time in which a model is traced
    if experiment.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    given = {name for name in given if name.startswith(("model.", "encoder."))}
    return train(experiment, preset=arguments[0], given=given)


def parse(arguments: list[str]) -> Experiment:
    """The preset that the first argument names, changed by the flags that follow; exits with help or an error."""
    require_no_empty(arguments)
    name = arguments[0] if arguments else "--help"
    if not name.startswith("-"):
        require_name("preset", name, PRESETS)
    with plain_help():
        if name in PRESETS:
            preset = PRESETS[name]
            return tyro.cli(
                type(preset),
                default=preset,
                args=arguments[1:],
                prog=f"jaxmodels train {name}",
                description=DESCRIPTIONS[name],
                registry=registry(),
            )
    return list_presets(arguments, "train", "Train one of the five models.")


def list_presets(arguments: list[str], command: str, description: str) -> Any:
    """Exits with the list of presets that `command` takes, or an error."""
    with plain_help():
        return tyro.cli(
            tyro.extras.subcommand_type_from_defaults(PRESETS, descriptions=_first_lines()),
            args=arguments,
            prog=f"jaxmodels {command}",
            description=f"{description} `jaxmodels {command} PRESET --help` shows what can be set.",
            config=(tyro.conf.AvoidSubcommands,),
            registry=registry(),
        )


def flags(experiment: Experiment) -> list[str]:
    """The names of all flags of a preset."""

    def names(settings: Any, prefix: str) -> Iterator[str]:
        for item in fields(settings):
            value, name = getattr(settings, item.name), prefix + item.name.replace("_", "-")
            if is_dataclass(value):
                yield from names(value, f"{name}.")
            elif not isinstance(value, Mapping):  # those have no flag
                yield name

    return [*names(experiment, "--"), "--help"]


def _first_lines() -> dict[str, str]:
    return {name: description.partition("\n")[0] for name, description in DESCRIPTIONS.items()}


def registry() -> Any:
    """How an Hourglass inside an Hourglass is written: `--model.depth 1 2 1`, `--model.depth 1 1 "(1,2,1)" 1 1`."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def depth(info: tyro.constructors.PrimitiveTypeInfo):
        if info.type != ForwardRef("Depth"):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="DEPTH",
            instance_from_str=lambda words: as_depth(ast.literal_eval(words[0])),
            is_instance=lambda value: isinstance(value, int | tuple),
            str_from_instance=lambda value: [str(value).replace(" ", "")],
        )

    return registry
