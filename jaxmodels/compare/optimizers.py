"""The optimiser of the training steps, by name or as a pair of one's own: in optax and in torch.optim."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxmodels.compare.calls import PairError, failures_explained


OptimizerName = Literal["sgd", "adam", "adamw", "lion", "adafactor"]
ScheduleName = Literal["constant", "cosine"]
T = TypeVar("T")
NamedParameters = list[tuple[str, torch.Tensor]]
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
    optimizer_ours: optax.GradientTransformation | None = None
    optimizer_theirs: Callable[[NamedParameters], torch.optim.Optimizer] | None = None

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
        if (self.optimizer_ours is None) != (self.optimizer_theirs is None):
            raise ValueError("optimizer_ours and optimizer_theirs belong together; give both or none")
        if self.optimizer != "sgd" and (self.momentum or self.dampening or self.nesterov):
            raise ValueError(
                f"momentum, dampening and nesterov are those of optimizer='sgd'; got optimizer={self.optimizer!r}"
            )

    @property
    def own(self) -> bool:
        """Whether the user brings both optimisers along."""
        return self.optimizer_ours is not None

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


def optax_optimizer(training: Training, mask: Any = None) -> optax.GradientTransformation:
    """The optimiser as users of optax write it.

    Args:
      training: which one.
      mask: which leaves decay, as optax takes it; all by default.
    """
    if training.optimizer_ours is not None:
        return training.optimizer_ours
    rate = _optax_schedule(training)
    b1, b2 = training.both_betas
    parts = []
    if training.clip_value is not None:
        parts.append(optax.clip(training.clip_value))
    if training.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(training.clip_norm))
    if training.optimizer in ("sgd", "adam") and training.decay:
        parts.append(optax.add_decayed_weights(training.decay, mask))
    match training.optimizer:
        case "sgd":
            parts.append(optax.sgd(rate, training.momentum or None, training.nesterov))
        case "adam":
            parts.append(optax.adam(rate, b1=b1, b2=b2, eps=training.eps))
        case "adamw":
            parts.append(
                optax.adamw(rate, b1=b1, b2=b2, eps=training.eps, weight_decay=training.decay, mask=mask)
            )
        case "lion":
            parts.append(optax.lion(rate, b1=b1, b2=b2, weight_decay=training.decay, mask=mask))
        case "adafactor":
            decay = training.decay or None
            parts.append(optax.adafactor(rate, weight_decay_rate=decay, weight_decay_mask=mask))
    optimizer = parts[0] if len(parts) == 1 else optax.chain(*parts)
    if training.accumulate > 1:
        with jax.enable_x64(True):  # its sums are in float32 unless they are told otherwise
            multi = optax.MultiSteps(optimizer, training.accumulate, accumulator_dtype=jnp.float64)
        return optax.GradientTransformation(multi.init, multi.update)  # ty: ignore[invalid-argument-type]
    return optimizer


def _optax_schedule(training: Training) -> float | optax.Schedule:
    """The rate of an update; optax's own schedules round it to float32."""
    if not training.warmup_steps and training.schedule == "constant":
        return training.learning_rate
    # A table holds every rate that is not the last one's.
    count = (training.total_steps or training.warmup_steps) + 1
    rates = np.array([training.rate(update) for update in range(count)])
    return lambda count: jnp.asarray(rates)[jnp.minimum(count, len(rates) - 1)]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What a training loop in PyTorch may do otherwise; the defaults are what optax does.

    Attributes:
      sum_gradients: gradients of accumulated batches are added, as `backward()` does, rather than averaged.
      clip_each: every batch's gradient is clipped, rather than the accumulated one.
      first_update: the number that the schedule gives the first update.
      average_from_start: the moving average starts at the initial weights, rather than at those after one update.
    """

    sum_gradients: bool = False
    clip_each: bool = False
    first_update: int = 0
    average_from_start: bool = True


class TorchOptimizer:
    """A torch.optim optimiser with accumulation, clipping, schedule and moving average around it.

    Args:
      training: which one.
      masters: the parameters by name; changed in place.
      loop: the conventions of the loop around it.
    """

    def __init__(
        self, training: Training, masters: Mapping[str, torch.Tensor], loop: Loop | None = None
    ) -> None:
        self.training, self.masters, self.loop = training, dict(masters), loop or Loop()
        self.optimizer = _torch_optimizer(training, self.masters)
        self.batches, self.updates = 0, 0
        self.sums = {name: torch.zeros_like(master) for name, master in self.masters.items()}
        self.average = {name: master.clone() for name, master in self.masters.items()}
        # Of the last update: gradients before and after clipping and hooks, and learning rates.
        self.raw: dict[str, torch.Tensor] = {}
        self.given: dict[str, torch.Tensor] = {}
        self.rates: dict[str, float] = {}
        self.optimizer.register_step_pre_hook(lambda *_: self._remember())

    @torch.no_grad()
    def step(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Takes the gradients of one batch, and updates the parameters after every `accumulate` of them."""
        share = 1.0 if self.loop.sum_gradients else 1 / self.training.accumulate
        gradients = self._clipped(gradients) if self.loop.clip_each else gradients
        for name, total in self.sums.items():
            total.add_(gradients[name].to(total.dtype), alpha=share)
        self.batches += 1
        if self.batches % self.training.accumulate:
            return
        self.raw = {name: total.clone() for name, total in self.sums.items()}
        sums = self.sums if self.loop.clip_each else self._clipped(self.sums)
        for name, master in self.masters.items():
            master.grad = sums[name].clone()
        if not self.training.own:
            for group in self.optimizer.param_groups:
                group["lr"] = self.training.rate(self.updates + self.loop.first_update)
        self.optimizer.step()
        for total in self.sums.values():
            total.zero_()
        self.updates += 1
        self._move_average()

    def _clipped(self, gradients: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        training = self.training
        if training.own or (training.clip_value is None and training.clip_norm is None):
            return gradients
        copies = {name: torch.zeros_like(self.masters[name]) for name in self.masters}
        for name, copy in copies.items():
            copy.grad = gradients[name].to(copy.dtype).clone()
        if training.clip_value is not None:
            torch.nn.utils.clip_grad_value_(copies.values(), training.clip_value)
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(copies.values(), training.clip_norm)
        return {name: copy.grad for name, copy in copies.items() if copy.grad is not None}

    def _remember(self) -> None:
        self.given = {
            name: master.grad.clone() for name, master in self.masters.items() if master.grad is not None
        }
        self.rates = self.per_parameter(lambda _, group: float(group["lr"]))

    def per_parameter(self, function: Callable[[torch.optim.Optimizer, dict[str, Any]], T]) -> dict[str, T]:
        """What a function says of the optimiser and of the group of each parameter."""
        names = {id(master): name for name, master in self.masters.items()}
        return {
            names[id(parameter)]: function(self.optimizer, group)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        }

    def _move_average(self) -> None:
        if self.training.ema_decay is None:
            return
        first = self.updates == 1 and not self.loop.average_from_start
        for name, average in self.average.items():
            average.lerp_(self.masters[name], 1.0 if first else 1 - self.training.ema_decay)


def _torch_optimizer(training: Training, masters: Mapping[str, torch.Tensor]) -> torch.optim.Optimizer:
    named = list(masters.items())
    if training.optimizer_theirs is not None:
        way_out = "it gets a list of names and parameters, and returns a torch.optim.Optimizer"
        with failures_explained("optimizer_theirs", way_out):
            optimizer = training.optimizer_theirs(named)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise PairError(f"optimizer_theirs returns a {type(optimizer).__name__}; {way_out}")
        return optimizer
    is_decayed = training.decayed or (lambda name: True)
    groups = [
        {"params": [one for one in named if is_decayed(one[0])], "weight_decay": training.decay},
        {"params": [one for one in named if not is_decayed(one[0])], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]] or groups[:1]
    rate, betas = training.learning_rate, training.both_betas
    match training.optimizer:
        case "sgd":
            options: dict[str, Any] = {"momentum": training.momentum, "dampening": training.dampening}
            return torch.optim.SGD(groups, lr=rate, nesterov=training.nesterov, **options)
        case "adam":
            return torch.optim.Adam(groups, lr=rate, betas=betas, eps=training.eps)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=training.eps)
        case "lion":
            return Lion(groups, lr=rate, betas=betas)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=rate)
    raise AssertionError(training.optimizer)


class Lion(torch.optim.Optimizer):
    """Chen et al., "Symbolic Discovery of Optimization Algorithms", algorithm 2; torch.optim does not have it."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # ty: ignore[incompatible-method-override]
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for parameter in group["params"]:
                moment = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                direction = torch.sign(b1 * moment + (1 - b1) * parameter.grad)
                parameter.sub_(group["lr"] * (direction + group["weight_decay"] * parameter))
                moment.lerp_(parameter.grad, 1 - b2)


def decay_mask(training: Training, names: Mapping[str, str]) -> Callable[[Any], Any] | None:
    """Which leaves of a Flax state decay, as optax takes it; None where all do.

    Args:
      names: the dotted path of every variable, and PyTorch's name.
    """
    if training.decayed is None:
        return None
    is_decayed = training.decayed

    def mask(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(names[_plain(path)]), tree)

    return mask


def _plain(path: tuple[Any, ...]) -> str:
    """The dotted path of a leaf, without the variable's own attribute."""
    parts = [str(part.key) for part in path if hasattr(part, "key")]
    return ".".join(parts)


def with_learning_rate(training: Training | None, learning_rate: float) -> Training:
    """The training of a comparison that names none: AdamW at this rate."""
    return replace(Training(), learning_rate=learning_rate) if training is None else training
