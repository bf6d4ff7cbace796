"""What a comparison returns."""

from dataclasses import dataclass, field
from typing import Literal

from jaxmodels.compare.divergence import Divergence, Verdict, verdict
from jaxmodels.compare.noise import Check, DType, LayerCheck, Statistic
from jaxmodels.compare.places import Place
from jaxmodels.compare.precision import Evidence
from jaxmodels.compare.routing import Routing


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss before each step, on the batch of that step; empty where no step was made.

    Attributes:
      jax, pytorch: the two sides, in the compared type, from the same initial weights.
      pytorch_other_threads: PyTorch once more, with another number of threads.
      pytorch_float32, pytorch_float64: PyTorch in both types; one of them is `pytorch`.
      jax_weights_float32, jax_weights_float64: PyTorch again, but at JAX's weights before each step.
      threads: how many threads computed `pytorch`, and how many `pytorch_other_threads`.
    """

    jax: list[float] = field(default_factory=list)
    pytorch: list[float] = field(default_factory=list)
    pytorch_other_threads: list[float] = field(default_factory=list)
    pytorch_float32: list[float] = field(default_factory=list)
    pytorch_float64: list[float] = field(default_factory=list)
    jax_weights_float32: list[float] = field(default_factory=list)
    jax_weights_float64: list[float] = field(default_factory=list)
    threads: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.jax)


@dataclass(frozen=True, kw_only=True)
class OptimizerComparison:
    """optax's optimiser and torch.optim's on the same gradients, in float64.

    Attributes:
      updates: how many were compared.
      error: the largest difference of a parameter after the last, relative to the parameter's largest value.
      tolerance: the largest that rounding explains.
      first_difference: the first update that differs, counted from 1; None where none does.
      parameter: the one that differs most there.
      explanation: the convention that the two libraries, or the two users, mean differently; None where none of those
        that are known is the whole difference.
      note: what keeps the comparison from more digits; None where nothing does.
      effects: for an optimiser by name, by how much another convention on one side would change the weights.
    """

    updates: int
    error: float
    tolerance: float
    first_difference: int | None
    parameter: str | None
    explanation: str | None
    effects: list[tuple[str, float]]
    note: str | None = None

    @property
    def ok(self) -> bool:
        """Whether both optimisers do the same."""
        return self.first_difference is None


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that was measured of one pair.

    Attributes:
      model: the pair's name.
      dtype: the compared type; bfloat16 in captures alone.
      parameters: how many numbers the models learn.
      outputs, layers, gradients, weights, loss_checks: what was compared, each against its tolerance.
      not_compared: PyTorch paths of modules of which no call was compared, and why.
      optimizers: the two optimisers on the same gradients, where `training=` names them.
      statistics: in training mode, the running statistics after one forward pass.
      weight_steps: after how many steps the weights were compared.
      losses: the losses of all training runs.
      divergence: where the two sides first differ; None where they agree.
      diagnosis: the mistake whose correction makes the difference vanish, in one sentence; None where none was found.
      code: the line of the JAX model to look at, where the place of the difference is in the user's own source.
      precision: that of matrix products on this machine.
      routing: for models that choose tokens, how far the choices agree.
      unjudged: reasons against a verdict that no check has, such as a weight that is NaN.
      notes: what else the reader should know.
    """

    model: str
    dtype: DType | Literal["bfloat16"]
    parameters: int
    outputs: list[Check]
    layers: list[LayerCheck]
    not_compared: dict[str, str]
    gradients: list[Check]
    weights: list[Check]
    weight_steps: int
    losses: Losses
    loss_checks: list[Check]
    divergence: Divergence | None
    precision: Evidence
    diagnosis: str | None = None
    code: Place | None = None
    routing: Routing | None = None
    statistics: list[Statistic] = field(default_factory=list)
    optimizers: OptimizerComparison | None = None
    unjudged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether both sides are equal; false as well where that cannot be judged."""
        return self.verdict == "equal"

    @property
    def verdict(self) -> Verdict:
        """ "equal", "different", or "cannot be judged"."""
        return self._judged[0]

    @property
    def reason(self) -> str | None:
        """Why the pair cannot be judged; None where it can."""
        return self._judged[1]

    @property
    def checks(self) -> list[Check]:
        """All of them; those of layers are not all decisive."""
        return [
            *self.outputs,
            *self.layers,
            *self.statistics,
            *self.gradients,
            *self.weights,
            *self.loss_checks,
        ]

    @property
    def _judged(self) -> tuple[Verdict, str | None]:
        unjudged = [Check("", 0.0, 0.0, 0.0, reason) for reason in self.unjudged]
        decisive = [
            *unjudged,
            *self.outputs,
            *self.statistics,
            *self.gradients,
            *self.weights,
            *self.loss_checks,
        ]
        return verdict(self.divergence, decisive)
