"""The computation of a run: its compiled step, initial state and evaluation."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxmodels.training.draws import Draws
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.functional_model import FunctionalModel
from jaxmodels.training.mesh import (
    batch_sharding,
    distribute,
    gather_sharding,
    make_mesh,
    parameter_sharding,
    replicated,
    with_mesh,
)
from jaxmodels.training.optimizer import optimizer, schedule
from jaxmodels.training.step import Parameters, TrainState, initial_state, loss_of_outputs, make_step
from jaxmodels.training.task import Call, Task


class Program:
    """The compiled functions of one experiment, and where their arrays live.

    Args:
      experiment: all settings.
      task: what `experiment.task()` returned.
      devices: by default those of all processes. With others the step can be compiled, but nothing can be run.

    Raises:
      ValueError: the settings do not fit the devices.
    """

    def __init__(
        self, experiment: Experiment, task: Task, *, devices: Sequence[jax.Device] | None = None
    ) -> None:
        self.experiment, self.task = experiment, task
        self.mesh = make_mesh(experiment.mesh, devices)
        require_fit(experiment, self.mesh)
        dtypes: dict[str, Any] = {
            "dtype": jnp.bfloat16 if experiment.precision == "bfloat16" else None,
            "param_dtype": jnp.float64 if experiment.precision == "float64" else jnp.float32,
        }
        self.make_model = lambda: task.model(**dtypes, rngs=nnx.Rngs(experiment.seed))
        if devices is None:
            _require_memory(self.make_model, experiment, devices=self.mesh.shape["fsdp"])
        self.functional = FunctionalModel(self.make_model, attention=experiment.attention)
        self.tx = optimizer(experiment.optim, experiment.steps, self.functional.parameters)
        self.dropout_key = jax.random.key(experiment.seed)
        self.evaluation_functions: dict[str, Any] = {}  # compiled, by their names in the task
        self._require_data_fits()

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and devices of the state; no array is allocated."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parameter_sharding(self.mesh, x.shape)),
            jax.eval_shape(self._initial_state),
        )

    @property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and devices of a batch, from one example."""
        sharding = batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct(
                (self.experiment.batch_size, *rows.shape[1:]), rows.dtype, sharding=sharding
            )
            for name, rows in self._example().items()
        }

    def initial_state(self) -> TrainState:
        """Fresh weights; every array is created on the devices where it stays."""
        return jax.jit(self._initial_state, out_shardings=self._state_shardings())()

    def step(self) -> Any:
        """The compiled step (state, batch) -> (state, metrics). It reuses the memory of the state it is given."""
        experiment = self.experiment
        step = make_step(
            self.task,
            self.functional,
            self.tx,
            key=self.dropout_key,
            accumulate=experiment.accumulate,
            learning_rate=schedule(experiment.optim, experiment.steps),
            ema_decay=experiment.optim.ema_decay,
            remat=experiment.remat,
            gathered=gather_sharding(self.mesh),
        )
        return jax.jit(
            with_mesh(self.mesh, step),
            donate_argnums=0,
            out_shardings=(self._state_shardings(), replicated(self.mesh)),
        )

    def evaluation(self, state: TrainState) -> Call:
        """Runs the task's functions on the evaluated weights of `state`, see `evaluated_parameters`."""
        parameters = evaluated_parameters(state)

        def call(name: str, batch: Mapping[str, np.ndarray]) -> Any:
            placed = {key: distribute(self.mesh, np.asarray(value)) for key, value in batch.items()}
            outputs = self._evaluation_function(name)(parameters, placed)
            return jax.tree.map(_to_numpy, outputs)

        return call

    def trained_model(self, state: TrainState) -> nnx.Module:
        """The model with the evaluated weights, gathered from all devices onto one."""
        gather = jax.jit(lambda x: x, out_shardings=replicated(self.mesh))
        parameters = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), gather(evaluated_parameters(state)))
        return self.functional.merge(parameters)

    def _require_data_fits(self) -> None:
        """Traces the loss of one example, so that a model refuses data of a wrong shape before training begins."""
        forward, total = loss_of_outputs(self.task, self.functional, remat=False)
        jax.eval_shape(
            lambda parameters, batch: total(parameters, forward(parameters, batch, self.dropout_key)),
            self.abstract_state.parameters,
            self._example(),
        )

    def _example(self) -> dict[str, np.ndarray]:
        return self.task.batch(np.zeros(1, int), Draws(0, np.zeros(1, int)))

    def _initial_state(self) -> TrainState:
        average = self.experiment.optim.ema_decay > 0
        return initial_state(self.functional, self.make_model, self.tx, average=average)

    def _state_shardings(self) -> Any:
        return jax.tree.map(lambda x: x.sharding, self.abstract_state)

    def _evaluation_function(self, name: str) -> Any:
        if name not in self.evaluation_functions:
            function = self.task.functions[name]
            self.evaluation_functions[name] = jax.jit(
                with_mesh(
                    self.mesh, lambda parameters, batch: function(self.functional.merge(parameters), batch)
                ),
                out_shardings=replicated(self.mesh),
            )
        return self.evaluation_functions[name]


def evaluated_parameters(state: TrainState) -> Parameters:
    """The moving average of the weights if there is one, the weights themselves otherwise."""
    return state.parameters if state.average is None else state.average


def require_fit(experiment: Experiment, mesh: Mesh) -> None:
    """ValueError unless batch and attention fit the devices."""
    if experiment.batch_size % (mesh.size * experiment.accumulate):
        raise ValueError(
            f"batch_size must be a multiple of devices × accumulate = {mesh.size} × "
            f"{experiment.accumulate}; got batch_size={experiment.batch_size}"
        )
    # Of the mesh: a step may be compiled for devices that are not there.
    platform = mesh.devices.flat[0].platform
    kernels = {"cudnn": ("gpu", "NVIDIA GPUs"), "pallas": ("tpu", "TPUs")}
    home, owner = kernels.get(experiment.attention, (platform, ""))
    if platform != home:
        raise ValueError(
            f"attention must be 'auto' or 'xla' on a {platform.upper()}: that kernel belongs to {owner}; "
            f"got attention={experiment.attention!r}"
        )


def _require_memory(make_model: Callable[[], nnx.Module], experiment: Experiment, *, devices: int) -> None:
    """ValueError if the parameters, their gradients and the optimiser's moments do not fit into memory.

    Args:
      make_model: traced, so that not one array is allocated.
      experiment: tells the number of arrays per parameter, and is named in the message.
      devices: how many devices share each parameter.
    """
    leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(make_model)))
    parameters = sum(math.prod(leaf.shape) for leaf in leaves)
    copies = 5 if experiment.optim.ema_decay > 0 else 4  # itself, its gradient, two moments, and its average
    needed = copies * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) / devices
    available = memory_of_a_device(jax.devices()[0])
    if available is not None and needed > available:
        raise ValueError(
            f"model must fit into memory: with its gradients and the optimiser's moments it needs "
            f"{needed / 2**30:,.1f} GiB per device, which has {available / 2**30:,.1f} GiB; got a model of "
            f"{parameters:,} parameters; lower the sizes in --model, or cut it over devices with --mesh.fsdp"
        )


def memory_of_a_device(device: jax.Device) -> int | None:
    """In bytes; None if it is not known. On a CPU it is the memory of the machine."""
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None
    return (device.memory_stats() or {}).get("bytes_limit")


def _to_numpy(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
