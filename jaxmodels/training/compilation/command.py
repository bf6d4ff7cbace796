"""`jaxmodels compile`: presets as in `jaxmodels train`, with the devices to compile for."""

from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jaxmodels.checks import require_name
from jaxmodels.command_line import plain_help, require_no_empty
from jaxmodels.training.chips import topology_devices
from jaxmodels.training.command import list_presets, registry
from jaxmodels.training.compilation.analysis import Analysis, analyse
from jaxmodels.training.compilation.report import lines
from jaxmodels.training.compilation.stand_in import stand_in_splits
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.mesh import make_mesh, require_device
from jaxmodels.training.presets import DESCRIPTIONS, PRESETS
from jaxmodels.training.run.program import Program, require_fit


def run(arguments: list[str]) -> int:
    """Parses what follows `jaxmodels compile`, compiles and reports; the exit status is 1 if it does not fit.

    Raises:
      ValueError, OSError, ModuleNotFoundError: wrong settings, topology or data, or a missing extra.
    """
    experiment, topology = parse(arguments)
    for line in lines(analysis := compile_step(experiment, topology)):
        print(line)
    return 1 if analysis.memory.fits is False else 0


def compile_step(experiment: Experiment, topology: str | None = None) -> Analysis:
    """Compiles and analyses the training step of an experiment.

    Args:
      experiment: as for training. If it names data, they are read; else zeros of the sizes that its settings name
        stand in for them.
      topology: a TPU slice such as "v6e:4x4", which need not be there; None means this machine's devices.

    Raises:
      ValueError: the topology is not known, or the settings do not fit it.
      ModuleNotFoundError: the TPU's compiler is not installed.
    """
    if experiment.precision == "float64":
        if topology is not None:
            raise ValueError(
                "precision must not be 'float64' on a TPU, which has none; got precision='float64'"
            )
        jax.config.update("jax_enable_x64", True)
    if topology is None:
        require_device()
    devices = jax.devices() if topology is None else topology_devices(topology)
    require_fit(experiment, make_mesh(experiment.mesh, devices))
    task = experiment.task(None if experiment.data else stand_in_splits(experiment))
    return analyse(Program(experiment.fitted_to(task), task, devices=devices))


def parse(arguments: list[str]) -> tuple[Experiment, str | None]:
    """The experiment and the topology; exits with help or an error."""
    require_no_empty(arguments)
    name = arguments[0] if arguments else "--help"
    if not name.startswith("-"):
        require_name("preset", name, PRESETS)
    if name not in PRESETS:
        return list_presets(
            arguments,
            "compile",
            "Compile a training step for devices that need not be there, and say what it needs.",
        )
    preset: Any = replace(PRESETS[name], workdir=Path("unused"), data=None)
    without_prefix: Any = Annotated[type(preset), tyro.conf.arg(name="")]  # ty: ignore[invalid-type-form]
    topology = tyro.conf.arg(
        help="TPU slice to compile for, such as v6e:4x4; by default what this machine has"
    )
    settings = make_dataclass(
        "Settings",
        [("experiment", without_prefix, preset), ("topology", Annotated[str | None, topology], None)],
    )
    with plain_help():
        parsed: Any = tyro.cli(
            settings,
            args=arguments[1:],
            prog=f"jaxmodels compile {name}",
            description=f"Compile the training step of this preset, and say what it needs.\n\n{DESCRIPTIONS[name]}",
            registry=registry(),
        )
    return parsed.experiment, parsed.topology
