"""Compiles the training step of an experiment, and says what it needs."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxmodels.training.chips import chip_of
from jaxmodels.training.compilation.arithmetic import Product, products
from jaxmodels.training.compilation.hlo import CompiledText, Messages
from jaxmodels.training.run.loop import MATMUL_PRECISION
from jaxmodels.training.run.program import Program, memory_of_a_device


UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device.

    Attributes:
      arguments: the state and the batch.
      outputs: the new state and the metrics.
      aliased: of the outputs, those that take the place of arguments.
      temporaries: activations, gradients, and whatever else the step needs; None if the compiler does not say.
      code: the program itself.
      total: all of it together.
      capacity: of the device; None if it is not known.
      refused: the compiler gave up, because it is too much. It then says little about the parts.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int | None
    code: int
    total: int
    capacity: int | None
    refused: bool = False

    @property
    def fits(self) -> bool | None:
        """None if the capacity is not known."""
        return None if self.capacity is None else not self.refused and self.total <= self.capacity


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What one training step needs. Bytes, FLOP and seconds are those of one device.

    Attributes:
      device_kind: JAX's name of the device.
      devices: how many there are.
      mesh: {"data": …, "fsdp": …}.
      batch_size, precision, accumulate, remat: settings of the step.
      parameters: numbers that are trained, of all devices together.
      memory: of a device.
      collectives: messages between devices, by kind; None, as for `traffic`, if the program was not compiled.
      flop: of matrix products and convolutions; every device computes as many.
      products: the same one by one, of all devices together.
      traffic: bytes read from main memory and written to it.
      arithmetic_seconds, traffic_seconds: the least that both take, by the data sheet; None if that is not known.
      reused: of the arrays of the state, how many are replaced in place; and how many there are.
      compile_seconds: tracing and compiling.
    """

    device_kind: str
    devices: int
    mesh: Mapping[str, int]
    batch_size: int
    precision: str
    accumulate: int
    remat: bool
    parameters: int
    memory: Memory
    collectives: Mapping[str, Messages] | None
    flop: int
    products: Sequence[Product]
    traffic: int | None
    arithmetic_seconds: float | None
    traffic_seconds: float | None
    reused: tuple[int, int] | None
    compile_seconds: float

    @property
    def flop_by_dtype(self) -> dict[str, int]:
        """`flop` by the wider type of the operands."""
        totals: dict[str, int] = {}
        for product in self.products:
            totals[product.dtype] = totals.get(product.dtype, 0) + product.flop
        return {dtype: flop // self.devices for dtype, flop in totals.items()}

    @property
    def seconds_at_best(self) -> float | None:
        """Products and traffic may overlap; messages between devices are not counted."""
        both = [x for x in (self.arithmetic_seconds, self.traffic_seconds) if x is not None]
        return max(both, default=None)

    def as_json(self) -> dict[str, Any]:
        """All fields but the single products, and whether it fits."""
        fields = asdict(replace(self, products=()))
        del fields["products"]
        return {
            **fields,
            "memory": {**fields["memory"], "fits": self.memory.fits},
            "collectives": self.collectives and {kind: m._asdict() for kind, m in self.collectives.items()},
            "flop_by_dtype": self.flop_by_dtype,
            "seconds_at_best": self.seconds_at_best,
        }


def analyse(program: Program) -> Analysis:
    """Compiles the step of a program, which may belong to devices that are not there, and analyses it."""
    experiment, device = program.experiment, program.mesh.devices.flat[0]
    started = time.monotonic()
    state, batch = program.abstract_state, program.abstract_batch
    with jax.default_matmul_precision(MATMUL_PRECISION[experiment.precision]):
        traced = program.step().trace(state, batch)
        compiled, memory = _compile(traced.lower(), (state, batch), device)
    compile_seconds = time.monotonic() - started
    found, devices = products(traced.jaxpr), program.mesh.size
    flop = sum(product.flop for product in found) // devices
    text = None if compiled is None else CompiledText(compiled.as_text())
    traffic = None if text is None else text.traffic()
    chip = chip_of(device)
    return Analysis(
        device_kind=device.device_kind,
        devices=devices,
        mesh=dict(program.mesh.shape),
        batch_size=experiment.batch_size,
        precision=experiment.precision,
        accumulate=experiment.accumulate,
        remat=experiment.remat,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.parameters)),
        memory=memory,
        collectives=None if text is None else text.collectives(),
        flop=flop,
        products=found,
        traffic=traffic,
        arithmetic_seconds=chip and flop / chip.flop_per_second,
        traffic_seconds=None if chip is None or traffic is None else traffic / chip.bytes_per_second,
        reused=None if text is None else (len(text.reused_arguments()), len(jax.tree.leaves(state))),
        compile_seconds=compile_seconds,
    )


def _compile(lowered: Any, arguments: Any, device: jax.Device) -> tuple[Any, Memory]:
    """The compiled program and its memory; None instead of the program if the compiler says that it does not fit."""
    chip = chip_of(device)
    capacity = chip.memory if chip else memory_of_a_device(device)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return None, too_large(error, arguments, capacity)
    memory = compiled.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    aliased = memory.alias_size_in_bytes
    return compiled, Memory(**parts, aliased=aliased, total=sum(parts.values()) - aliased, capacity=capacity)


def too_large(error: jax.errors.JaxRuntimeError, arguments: Any, capacity: int | None) -> Memory:
    """What the compiler says when it gives up; the error itself if it is another one."""
    amount = r"\(?([\d.]+)([KMGT]?)\)?"
    found = re.search(
        rf"(HLO temporaries|[Uu]sed) {amount} (?:exceeds available HBM|of) {amount}", str(error)
    )
    if found is None:
        raise error
    needed, available = (int(float(found[i]) * UNITS[found[i + 1]]) for i in (2, 4))
    state = sum(_bytes_of_a_device(leaf) for leaf in jax.tree.leaves(arguments))
    temporaries = needed if found[1] == "HLO temporaries" else None
    return Memory(
        arguments=state,
        outputs=0,
        aliased=0,
        temporaries=temporaries,
        code=0,
        total=needed if temporaries is None else state + temporaries,
        capacity=min(available, capacity or available),
        refused=True,
    )


def _bytes_of_a_device(leaf: jax.ShapeDtypeStruct) -> int:
    sharding: Any = leaf.sharding
    return int(np.prod(sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
