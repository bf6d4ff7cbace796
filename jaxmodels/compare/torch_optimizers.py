"""The optimiser of the training steps in torch.optim. Needs no JAX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from jaxmodels.compare.calls import PairError, failures_explained
from jaxmodels.compare.training import Training


T = TypeVar("T")


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
