"""AdamW with what training runs add to it: a schedule, clipping, and decay of the right parameters only."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import optax


# Decayed is what multiplies activations. Norms, biases, learned vectors and position tables are left alone;
# a table that is also the output projection (MaMMUT) is one parameter and therefore decayed once.
DECAYED_NAMES = ("kernel", "to_kv")
DECAYED_TABLE = "token_emb.embedding"


MOST_STEPS = 2**31 - 1  # the number of a step is an int32
DEFAULT_WARMUP = 50  # steps
LARGEST_FLOAT32 = 3.4028234663852886e38


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, linear warm-up, cosine decay, clipping by the global norm."""

    learning_rate: float = 1e-3  # at the end of the warm-up
    warmup_steps: int | None = None  # by default 50, and in a short run a tenth of its steps
    final_learning_rate: float = 0.0  # after the last step, as a share of learning_rate
    weight_decay: float = (
        0.05  # of matrices and token tables; norms, biases, vectors and positions are exempt
    )
    clip_norm: float = 1.0  # the gradient is scaled down to this norm; 0 leaves it as it is
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    ema_decay: float = 0.0  # of the average of the weights that is evaluated and saved; 0 turns it off

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number > 0; got {name}={value!r}")
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            if not 0 <= value <= LARGEST_FLOAT32:
                raise ValueError(
                    f"{name} must be a number ≥ 0 that is finite in float32; got {name}={value!r}"
                )
        for name in ("b1", "b2", "ema_decay"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1); got {name}={value!r}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(
                "final_learning_rate is a share of learning_rate and must lie in [0, 1]; "
                f"got final_learning_rate={self.final_learning_rate!r}"
            )
        if self.warmup_steps is not None and not 0 <= self.warmup_steps < MOST_STEPS:
            limits = "≥ 0" if self.warmup_steps < 0 else f"below {MOST_STEPS}"
            raise ValueError(f"warmup_steps must be {limits}; got warmup_steps={self.warmup_steps!r}")


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to the parameter of this dotted name."""
    return name.rpartition(".")[2] in DECAYED_NAMES or name.endswith(DECAYED_TABLE)


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of each step: up in a line, down in half a cosine.

    A warm-up that is longer than the run is kept as it is: the learning rate then ends below its peak.
    """
    warmup = min(DEFAULT_WARMUP, steps // 10) if config.warmup_steps is None else config.warmup_steps
    peak = config.learning_rate
    if peak > LARGEST_FLOAT32 and not jax.config.read("jax_enable_x64"):
        peak = math.inf  # which it becomes in float32; NumPy would warn of it
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / (warmup + 1),
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=peak * config.final_learning_rate,
    )


def optimizer(config: OptimizerConfig, steps: int, parameters: Iterable[str]) -> optax.GradientTransformation:
    """The update rule for a flat dict of parameters with these names, over a run of `steps`."""
    mask = {name: is_decayed(name) for name in parameters}
    adamw = optax.adamw(
        schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=mask,
    )
    if config.clip_norm == 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
