"""The optimiser of the training steps in optax. Needs no PyTorch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmodels.compare.training import Training


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
