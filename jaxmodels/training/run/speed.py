"""How fast a run is: what it reads and computes in a second, how long it waits for data, and its share of the peak."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxmodels.training.chips import chip_of
from jaxmodels.training.compilation.arithmetic import flop
from jaxmodels.training.run.program import Program


PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


class Lap(NamedTuple):
    """Some steps in a row, without compilation, evaluation and checkpoints.

    Attributes:
      step_seconds: of one step, on average.
      wait_seconds: of them the host waited for data. The device may have computed an earlier step meanwhile.
    """

    step_seconds: float
    wait_seconds: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the speed of a run is computed from.

    Attributes:
      batch_size: examples per step.
      unit, per_example: what is counted, such as tokens, and how many an example has.
      flop: of the products of a step, of all devices together.
      peak: FLOP per second of all devices together, by the data sheet; None if it is not known.
      chip: the name of the data sheet.
    """

    batch_size: int
    unit: str
    per_example: int
    flop: int
    peak: float | None = None
    chip: str = ""

    def measured(self, lap: Lap) -> dict[str, float]:
        """The entries of a line of metrics.jsonl. There is no share of the peak where it would be above 1."""
        examples = self.batch_size / lap.step_seconds
        share = self._share(lap)
        return {
            "examples_per_second": round(examples, 2),
            f"{self.unit}_per_second": round(self.per_example * examples, 2),
            "step_seconds": round(lap.step_seconds, 6),
            "data_wait_seconds": round(lap.wait_seconds, 6),
            "flop_per_second": self.flop / lap.step_seconds,
            **({} if share is None or share > 1 else {"share_of_peak": round(share, 4)}),
        }

    def texts(self, measured: Mapping[str, float]) -> list[str]:
        """The same for people, the most important first."""
        share = measured.get("share_of_peak")
        of_peak = "" if share is None else f" ({share:.1%} of {self.chip})"
        step, wait = (1e3 * measured[name] for name in ("step_seconds", "data_wait_seconds"))
        return [
            f"{measured[f'{self.unit}_per_second']:,.0f} {self.unit}/s",
            f"{wait:,.1f} of {step:,.1f} ms waiting for data",
            with_prefix(measured["flop_per_second"]) + "FLOP/s" + of_peak,
        ]

    def doubt(self, lap: Lap) -> str | None:
        """What to say where the share of the peak would be above 1, which cannot be; else None."""
        share = self._share(lap)
        if share is None or share <= 1:
            return None
        return (
            f"warning: {with_prefix(self.flop / lap.step_seconds)}FLOP/s would be {share:.0%} of what the data sheet "
            f"of {self.chip} allows; the count of products or that number is wrong, so no share is given"
        )

    def _share(self, lap: Lap) -> float | None:
        return self.peak and self.flop / lap.step_seconds / self.peak


def speed_of(program: Program, step: Any) -> Speed:
    """What the speed of a program is computed from.

    Args:
      program: whose step was called at least once.
      step: what `program.step()` returned. Tracing it again costs nothing.
    """
    experiment, mesh, unit = program.experiment, program.mesh, program.task.unit
    device = mesh.devices.flat[0]
    if device.platform != "cpu" and experiment.attention != "xla":
        # Products inside of kernels cannot be counted, or not well: the same attention without a kernel has as many.
        program = Program(replace(experiment, attention="xla"), program.task)
        step = program.step()
    traced = step.trace(program.abstract_state, program.abstract_batch)
    chip = chip_of(device) if experiment.precision == "bfloat16" else None  # data sheets name that peak
    return Speed(
        batch_size=experiment.batch_size,
        unit=unit.name,
        per_example=unit.per_example,
        flop=flop(traced.jaxpr),
        peak=chip and chip.flop_per_second * mesh.size,
        chip=f"{mesh.size} × {chip.name}" if chip and mesh.size > 1 else chip.name if chip else "",
    )


def with_prefix(number: float) -> str:
    """A number as "1.23 T", to be followed by its unit."""
    for size, prefix in PREFIXES:
        if number >= size:
            return f"{number / size:,.3g} {prefix}"
    return f"{number:,.3g} "
