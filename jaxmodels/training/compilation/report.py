"""An analysis in words: what a step needs, whether it fits, and what would make it fit."""

import math
from collections.abc import Iterator

from jaxmodels.training.compilation.analysis import Analysis


GIB = 2**30
ROOM = 0.95  # of the memory: estimates are not exact


def lines(analysis: Analysis) -> Iterator[str]:
    """The report, line by line."""
    a, memory = analysis, analysis.memory
    yield (
        f"{a.devices} × {a.device_kind}, mesh data={a.mesh['data']} × fsdp={a.mesh['fsdp']}, batch {a.batch_size}, "
        f"{a.precision}, {a.parameters:,} parameters; compiled in {a.compile_seconds:.0f} s"
    )
    yield "memory of each device:"
    yield f"  arguments   {_size(memory.arguments)} (state and batch)"
    if not memory.refused:
        yield f"  outputs     {_size(memory.outputs)}, of which {_size(memory.aliased)} take the place of arguments"
    if memory.temporaries is not None:
        yield f"  temporaries {_size(memory.temporaries)} (activations, gradients)"
    if memory.refused:
        yield "  the compiler gave up, and says no more"
    else:
        yield f"  program     {_size(memory.code)}"
    yield f"  together    {_size(memory.total)}{_verdict(analysis)}"
    if memory.fits is False:
        yield from (f"  to make it fit: {way}" for way in ways_to_fit(analysis))
    if a.collectives is not None:
        yield "messages between devices, per step:" if a.collectives else "no messages between devices"
        for kind, messages in a.collectives.items():
            yield f"  {kind}: {messages.count}, {_size(messages.bytes)}"
    kinds = ", ".join(f"{flop / a.flop:.1%} in {name}" for name, flop in a.flop_by_dtype.items() if a.flop)
    yield f"products: {a.flop / 1e12:,.3f} TFLOP per step and device, {kinds}{_at_least(a.arithmetic_seconds)}"
    if a.flop_by_dtype.get("float32", 0) > a.flop / 2 and a.arithmetic_seconds is not None:
        yield "  that is the time in bfloat16; in float32 it is several times as long"
    if a.traffic is not None:
        yield f"memory traffic: {a.traffic / 1e9:,.2f} GB per step and device{_at_least(a.traffic_seconds)}"
    if (seconds := a.seconds_at_best) is not None and a.traffic is not None:
        yield f"a step takes at best {_milliseconds(seconds)}, {a.batch_size / seconds:,.0f} examples/s"


def ways_to_fit(analysis: Analysis) -> list[str]:
    """Settings that would make it fit, the cheapest first; estimated from the sizes of state and temporaries."""
    a, memory = analysis, analysis.memory
    if memory.capacity is None:
        return []
    available = ROOM * memory.capacity
    state, rest = memory.arguments, memory.total - memory.arguments
    rows = a.batch_size // a.devices // a.accumulate  # examples of a device that are computed together
    ways = []
    room = available - rest if rest < available else available / 2  # for the state, when only that is changed
    cut = _smallest(a.devices, lambda n: n > a.mesh["fsdp"] and state * a.mesh["fsdp"] / n <= room)
    if cut and state > min(rest, available) / 4:
        ways.append(f"--mesh.fsdp {cut} cuts parameters and optimiser over more devices")
    if not a.remat:
        ways.append("--remat computes activations again instead of keeping them")
    if state < available:
        parts = _smallest(rows, lambda n: n > 1 and state + rest / n <= available)
        if parts:
            ways.append(f"--accumulate {a.accumulate * parts} computes a batch in parts")
            ways.append(f"--batch-size {a.batch_size // parts}")
        ways.append(f"{a.devices * math.ceil(rest / (available - state))} devices")
    elif not cut:
        ways.append("more devices and a larger --mesh.fsdp, or a smaller model: the state alone is too large")
    return ways


def _smallest(number: int, fits) -> int | None:
    """The smallest divisor that fits."""
    return next((n for n in range(1, number + 1) if number % n == 0 and fits(n)), None)


def _verdict(analysis: Analysis) -> str:
    memory = analysis.memory
    if memory.capacity is None:
        return ""
    return f" of {_size(memory.capacity)}: {'fits' if memory.fits else 'does not fit'}"


def _size(size: int) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e3:.2g} ms"


def _at_least(seconds: float | None) -> str:
    return "" if seconds is None else f": at least {_milliseconds(seconds)}"
