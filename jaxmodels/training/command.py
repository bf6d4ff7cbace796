"""`jaxmodels train`: presets as subcommands, every field as a typed flag."""

import ast
from typing import Any

import jax
import tyro

from jaxmodels.models.hourglass import Depth, as_depth
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.loop import train
from jaxmodels.training.presets import DESCRIPTIONS, PRESETS


def run(arguments: list[str]) -> int:
    """Parses what follows `jaxmodels train`, and trains; returns the exit status.

    Raises:
      ValueError, OSError, ModuleNotFoundError: wrong settings or data, or a missing extra.
    """
    kind = tyro.extras.subcommand_type_from_defaults(PRESETS, descriptions=DESCRIPTIONS)
    experiment: Experiment = tyro.cli(
        kind,
        args=arguments,
        prog="jaxmodels train",
        description="Train one of the five models; `jaxmodels train PRESET --help` shows what can be set.",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
        registry=_registry(),
    )
    if experiment.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    return train(experiment, preset=_preset(arguments))


def _preset(arguments: list[str]) -> str:
    return next((argument for argument in arguments if argument in PRESETS), "")


def _registry() -> Any:
    """How the depth of an Hourglass, a nested triple, is written on the command line: "(1,(1,2,1),1)"."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def depth(info: tyro.constructors.PrimitiveTypeInfo):
        if info.type is not Depth and info.type != tuple[int, Depth, int]:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="(PRE,VALLEY,POST)",
            instance_from_str=lambda text: as_depth(ast.literal_eval(text[0])),
            is_instance=lambda value: isinstance(value, int | tuple),
            str_from_instance=lambda value: [str(value).replace(" ", "")],
        )

    return registry
