"""What accelerators can do by their data sheets, and the chips of a TPU slice that a compiler can be asked for."""

import importlib.util
import os
import re
from typing import NamedTuple

import jax

from jaxmodels.checks import require_name


class Chip(NamedTuple):
    """Numbers of one chip's data sheet.

    Attributes:
      name: as in "v6e".
      kind: JAX's `device_kind`, or how it begins.
      flop_per_second: of bfloat16 products, dense.
      bytes_per_second: between the chip and its memory.
      memory: bytes.
      dimensions: of a slice's shape; 0 for what is no TPU.
    """

    name: str
    kind: str
    flop_per_second: float
    bytes_per_second: float
    memory: int
    dimensions: int = 0


GIB = 2**30
TPUS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5 lite", 197e12, 819e9, 16 * GIB, 2),
        Chip("v5p", "TPU v5", 459e12, 2765e9, 95 * GIB, 3),
        Chip("v6e", "TPU v6 lite", 918e12, 1640e9, 32 * GIB, 2),
    )
}
GPUS = (  # the first one whose kind fits
    Chip("H200", "NVIDIA H200", 990e12, 4800e9, 141 * GIB),
    Chip("H100 PCIe", "NVIDIA H100 PCIe", 756e12, 2000e9, 80 * GIB),
    Chip("H100 NVL", "NVIDIA H100 NVL", 835e12, 3900e9, 94 * GIB),
    Chip("H100", "NVIDIA H100", 990e12, 3350e9, 80 * GIB),
    Chip("A100 40 GB", "NVIDIA A100-SXM4-40GB", 312e12, 1555e9, 40 * GIB),
    Chip("A100 40 GB", "NVIDIA A100-PCIE-40GB", 312e12, 1555e9, 40 * GIB),
    Chip("A100", "NVIDIA A100", 312e12, 2039e9, 80 * GIB),
    Chip("L40S", "NVIDIA L40S", 362e12, 864e9, 48 * GIB),
    Chip("L40", "NVIDIA L40", 181e12, 864e9, 48 * GIB),
    Chip("L4", "NVIDIA L4", 121e12, 300e9, 24 * GIB),
)


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a device; None if its data sheet is not known here."""
    tpus = [chip for chip in TPUS.values() if device.device_kind == chip.kind]
    gpus = [chip for chip in GPUS if device.device_kind.startswith(chip.kind)]
    return next(iter([*tpus, *gpus]), None)


def topology_devices(topology: str) -> list[jax.Device]:
    """The chips of a TPU slice such as "v6e:4x4", for the compiler: nothing can be run on them.

    JAX's own devices are then those of the CPU, and compiled programs are not kept for later runs.

    Raises:
      ValueError: not a slice that is known here.
      ModuleNotFoundError: libtpu, which holds the compiler, is not installed.
    """
    name, _, shape = topology.partition(":")
    require_name("chip", name, TPUS)
    sides = "x".join(["2", "2", "1"][: TPUS[name].dimensions])
    if not re.fullmatch("x".join([r"[1-9]\d*"] * TPUS[name].dimensions), shape):
        raise ValueError(
            f"topology must be CHIP:SIDES with {TPUS[name].dimensions} sides, such as {name}:{sides}; "
            f"got topology={topology!r}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "compiling for a TPU needs libtpu and Python 3.12 or newer: pip install -e '.[tpu]' in a checkout of the "
            "repository, pip install 'jaxmodels[tpu]' where the package comes from an index"
        )
    # Without these libtpu asks the network which TPU it runs on, warns, and lets only one process at a time use it.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ):
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # without a TPU what is kept cannot be read
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(
            f"topology must be a slice that the compiler knows, such as {name}:{sides}; got topology={topology!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
