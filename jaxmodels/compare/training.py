"""How the training steps of a comparison update the weights. Needs neither framework."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args


OptimizerName = Literal["sgd", "adam", "adamw", "lion", "adafactor"]
ScheduleName = Literal["constant", "cosine"]
DEFAULT_BETAS = {"lion": (0.9, 0.99)}
DEFAULT_DECAY = {"adamw": 1e-2}  # torch.optim's own


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the training steps of a comparison update the weights.

    Attributes:
      optimizer: its name. `torch.optim` has all but Lion, which is built from its paper (arXiv 2302.06675).
      learning_rate: the largest of the schedule.
      schedule: what follows the warm-up: "constant", or "cosine", which reaches 0 after `total_steps`.
      warmup_steps: updates in which the rate grows linearly from 0.
      total_steps: updates of the whole schedule; only "cosine" needs it.
      momentum, dampening, nesterov: of SGD.
      betas, eps: of Adam, AdamW and Lion; None stands for the published betas.
      weight_decay: L2 in SGD and Adam, decoupled in the others; None stands for torch.optim's default.
      decayed: which parameters decay, by PyTorch's name.
      clip_norm, clip_value: the largest norm of all gradients together, and the largest entry.
      accumulate: batches per update; the mean of their gradients is used.
      ema_decay: also keeps an exponential moving average of the weights.
      optimizer_ours: an optax optimiser of your own; it gets the Flax model's parameters, an `nnx.State`.
      optimizer_theirs: makes a `torch.optim.Optimizer` of your own from the named parameters. Clipping and schedules
        belong into its step hooks. The two replace all that the fields above say, but for `accumulate`, which is
        then PyTorch's alone: give `optimizer_ours` an `optax.MultiSteps`.
    """

    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    schedule: ScheduleName = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] | None = None
    eps: float = 1e-8
    weight_decay: float | None = None
    decayed: Callable[[str], bool] | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    optimizer_ours: Any = None
    optimizer_theirs: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        rules = (
            ("optimizer", self.optimizer in get_args(OptimizerName), f"one of {_listed(OptimizerName)}"),
            ("schedule", self.schedule in get_args(ScheduleName), f"one of {_listed(ScheduleName)}"),
            ("learning_rate", self.learning_rate >= 0, "≥ 0"),
            ("warmup_steps", self.warmup_steps >= 0, "≥ 0"),
            ("accumulate", self.accumulate >= 1, "≥ 1"),
            ("ema_decay", self.ema_decay is None or 0 <= self.ema_decay < 1, "in [0, 1)"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "> 0"),
            ("clip_value", self.clip_value is None or self.clip_value > 0, "> 0"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name} must be {rule}; got {name}={getattr(self, name)!r}")
        if self.schedule == "cosine" and (self.total_steps or 0) <= self.warmup_steps:
            raise ValueError(
                f"schedule='cosine' needs total_steps > warmup_steps={self.warmup_steps}; "
                f"got total_steps={self.total_steps}"
            )
        if self.optimizer != "sgd" and (self.momentum or self.dampening or self.nesterov):
            raise ValueError(
                f"momentum, dampening and nesterov are those of optimizer='sgd'; got optimizer={self.optimizer!r}"
            )

    @property
    def own(self) -> bool:
        """Whether the user brings the optimisers along."""
        return self.optimizer_ours is not None or self.optimizer_theirs is not None

    def require_both_sides(self) -> None:
        """Refuses an optimiser of the user's own for one side alone, which only a capture may have.

        Raises:
          ValueError: the other side has none.
        """
        if (self.optimizer_ours is None) != (self.optimizer_theirs is None):
            raise ValueError("optimizer_ours and optimizer_theirs belong together; give both or none")

    @property
    def decay(self) -> float:
        """The weight decay, with the default filled in."""
        return DEFAULT_DECAY.get(self.optimizer, 0.0) if self.weight_decay is None else self.weight_decay

    @property
    def both_betas(self) -> tuple[float, float]:
        """The betas, with the default filled in."""
        return self.betas or DEFAULT_BETAS.get(self.optimizer, (0.9, 0.999))

    @property
    def same_in_optax(self) -> bool:
        """Whether optax's optimiser computes what PyTorch's of the same name does."""
        return (
            not self.own and self.optimizer != "adafactor" and not self.dampening and self.clip_norm is None
        )

    def rate(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        if update < self.warmup_steps:
            return self.learning_rate * update / self.warmup_steps
        if self.schedule == "constant" or self.total_steps is None:
            return self.learning_rate
        done = (update - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _listed(literal: Any) -> str:
    return ", ".join(map(repr, get_args(literal)))


def with_learning_rate(training: Training | None, learning_rate: float) -> Training:
    """The training of a comparison that names none: AdamW at this rate."""
    if training is not None:
        training.require_both_sides()
    return replace(Training(), learning_rate=learning_rate) if training is None else training
