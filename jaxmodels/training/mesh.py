"""Where arrays live: a mesh of `data × fsdp`, one rule that shards every parameter, and several hosts."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


Function = TypeVar("Function", bound=Callable)

# Smaller arrays are copied to every device: sharding them saves little memory and costs a message each.
SMALLEST_SHARDED = 1024


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices share the batch only, and how many share the parameters as well."""

    data: int = 0  # copies of the parameters; 0 takes all devices that `fsdp` leaves
    fsdp: int = 1  # devices over which parameters and optimiser state are cut

    def __post_init__(self) -> None:
        if self.data < 0:
            raise ValueError(f"mesh.data must be ≥ 0 (0: as many as there are); got data={self.data}")
        if self.fsdp < 1:
            raise ValueError(f"mesh.fsdp must be ≥ 1; got fsdp={self.fsdp}")


@dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Several processes that train together, one per host; each is started with the same command."""

    join: bool = False  # find the others through the cluster (Cloud TPU, Slurm, Kubernetes, Open MPI)
    coordinator: str | None = None  # HOST:PORT of process 0, where there is no such cluster
    processes: int | None = None  # how many there are
    process: int | None = None  # which one this is, from 0

    def __post_init__(self) -> None:
        given = [x is not None for x in (self.coordinator, self.processes, self.process)]
        if any(given) and not all(given):
            raise ValueError(
                "hosts.coordinator, hosts.processes and hosts.process belong together; got "
                f"coordinator={self.coordinator!r}, processes={self.processes}, process={self.process}"
            )
        if self.processes is not None and self.process is not None:
            if not 0 <= self.process < self.processes:
                raise ValueError(
                    f"hosts.process must lie in [0, hosts.processes={self.processes}); got {self.process}"
                )
            host, _, port = (self.coordinator or "").rpartition(":")
            if not host or not port.isdigit() or int(port) > 65535:
                raise ValueError(f"hosts.coordinator must be HOST:PORT; got {self.coordinator!r}")


def join_hosts(config: HostsConfig) -> None:
    """Connects this process with the others; must come before anything asks for a device."""
    if config.coordinator is not None:
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
    elif config.join:
        jax.distributed.initialize()


def require_device() -> None:
    """ValueError where JAX finds no device, as when JAX_PLATFORMS names one that is not there."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that a platform without a plugin is there
        reason = str(error).partition("\n")[0] or "no such platform"
        raise ValueError(
            f"JAX must find a device; got JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')!r} ({reason}); "
            "unset JAX_PLATFORMS to take what is there"
        ) from error


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh; ValueError where the numbers do not fit the devices.

    A single process may use fewer devices than there are; several must use all.

    Args:
      config: how many devices share what.
      devices: by default those of all processes. A compiler also takes devices that are not there.
    """
    devices = jax.devices() if devices is None else devices
    available = len(devices)
    data = config.data or available // config.fsdp
    wanted = data * config.fsdp
    processes = {device.process_index for device in devices}
    fits = wanted == available if len(processes) > 1 else 1 <= wanted <= available
    if not fits or (config.data == 0 and available % config.fsdp):
        raise ValueError(
            f"mesh.data × mesh.fsdp must be the number of devices, {available}; "
            f"got data={config.data}, fsdp={config.fsdp}"
        )
    # Auto: the compiler propagates shardings, so that models say nothing about devices.
    return jax.make_mesh(
        (data, config.fsdp), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=devices[:wanted]
    )


def with_mesh(mesh: Mesh, function: Function) -> Function:
    """`function`, traced with `mesh` in the context: from it attention learns where it runs, see `attend`."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return wrapper  # ty: ignore[invalid-explicit-return]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples are dealt out to all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The rule for parameters and optimiser state: the largest axis that divides evenly is cut over `fsdp`."""
    parts = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes or math.prod(shape) < SMALLEST_SHARDED:
        return replicated(mesh)
    axis = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, P(*["fsdp" if i == axis else None for i in range(len(shape))]))


def gather_sharding(mesh: Mesh) -> NamedSharding | None:
    """Where parameters go for their use: to every device, if they are cut at all."""
    return replicated(mesh) if mesh.shape["fsdp"] > 1 else None


def distribute(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """The same array on every device of every process; cut over the devices if its first axis divides evenly."""
    even = array.ndim > 0 and array.shape[0] % mesh.size == 0 and array.shape[0] > 0
    sharding = batch_sharding(mesh) if even else replicated(mesh)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
