"""Training examples per second without a model: `python -m benchmarks.reader [PRESET …]`.

Beside the rate it says how much CPU time an example takes, in all threads together: that depends less on what else the
machine is doing. Both are medians over several stretches of the stream; the range is that of all stretches.
"""

import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from jaxmodels.checks import require_between, require_name
from jaxmodels.training.allocator import keep_freed_memory
from jaxmodels.training.batches import batches
from jaxmodels.training.presets import PRESETS


# Their data are in the package.
READABLE = [name for name, experiment in PRESETS.items() if experiment.data is None]
DEFAULT_PRESETS = (
    "colt5-vit-emoji-gpu",
    "mammut-emoji-gpu",
    "glom-emoji-gpu",
    "scalable-vit-emoji-gpu",
    "hourglass-sotu-gpu",
)
WARM_UP = 10  # batches that are not measured: what was read ahead, and first calls


class Stretch(NamedTuple):
    """Some batches in a row.

    Attributes:
      rate: examples per second.
      cpu: seconds of CPU time per example, of all threads.
    """

    rate: float
    cpu: float


def measure(stream: Iterator[Any], *, batch_size: int, stretches: int, seconds: float) -> list[Stretch]:
    """Reads batches for `seconds` a stretch, at least two of them, and waits for each on the device."""
    jax.block_until_ready(list(islice(stream, WARM_UP)))
    measured = []
    for _ in range(stretches):
        began, cpu, examples = time.monotonic(), time.process_time(), 0
        while time.monotonic() - began < seconds or examples < 2 * batch_size:
            jax.block_until_ready(next(stream))
            examples += batch_size
        passed = time.monotonic() - began
        measured.append(Stretch(examples / passed, (time.process_time() - cpu) / examples))
    return measured


def row(name: str, stretches: Sequence[Stretch]) -> str:
    """A line of the table."""
    rates = [stretch.rate for stretch in stretches]
    cpu = median(stretch.cpu for stretch in stretches)
    spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
    return f"{name:<24}{median(rates):>12,.0f}{spread:>22}{cpu * 1e6:>12,.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table, a line for each preset; the exit status is 2 for wrong arguments."""
    parser = ArgumentParser(prog="python -m benchmarks.reader", description=__doc__)
    parser.add_argument("presets", nargs="*", default=DEFAULT_PRESETS, metavar="PRESET")
    parser.add_argument("--stretches", type=int, default=7, help="how often each is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a stretch")
    options = parser.parse_args(arguments)
    try:
        require_between("stretches", options.stretches, 1, 1000)
        for name in options.presets:
            require_name("preset with data in the package", name, READABLE)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    keep_freed_memory()  # as `jaxmodels train` does
    sharding = SingleDeviceSharding(jax.devices()[0])
    print(f"{'preset':<24}{'examples/s':>12}{'range':>22}{'CPU µs each':>12}")
    for name in options.presets:
        size = PRESETS[name].batch_size
        stream = batches(PRESETS[name].task(), batch_size=size, seed=0, sharding=sharding)
        stretches = measure(stream, batch_size=size, stretches=options.stretches, seconds=options.seconds)
        print(row(name, stretches), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
