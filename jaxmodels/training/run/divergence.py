"""A loss or gradient that is not finite: stop, and say where it shows first."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmodels.training.run.checkpoints import Checkpoints
from jaxmodels.training.run.program import Program
from jaxmodels.training.step import TrainState, unhealthy


ADVICE = (
    "A lower --optim.learning-rate, a longer --optim.warmup-steps or a smaller --optim.clip-norm may help."
)


class Diverged(Exception):
    """The loss or a gradient was not finite."""


def require_finite(
    program: Program,
    checkpoints: Checkpoints,
    state: TrainState,
    number: int,
    batch: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Raises Diverged, with a diagnosis, unless loss and gradient of step `number` are finite.

    Args:
      program: the run's program; computes the step again to find what is not finite.
      checkpoints: the newest one is named in the message.
      state: after this step or a later one. A step that is not finite changes nothing in it.
      number: the step's number, from 1.
      batch, metrics: those of that step.
    """
    loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
    if math.isfinite(loss) and math.isfinite(norm):
        return
    checkpoints.wait()
    key = jax.random.fold_in(program.dropout_key, number - 1)
    found = unhealthy(program.task, program.functional, state.parameters, batch, key)
    raise Diverged(
        f"stopped at step {number}: the loss is {loss} and the norm of its gradient {norm}.\n"
        f"  {diagnosis(found)}\n"
        f"  {_sentence(checkpoints.newest())} {ADVICE}"
    )


def require_finite_state(checkpoints: Checkpoints, state: TrainState) -> None:
    """Raises Diverged unless all numbers of the state are finite. Call it before the state is evaluated or saved.

    The last step may have had a finite loss and gradient, and an update that is too large for the number format.
    """
    arrays = state.parameters | {f"average of {name}": x for name, x in (state.average or {}).items()}
    names = [name for name, finite in _all_finite(arrays).items() if not bool(finite)]
    names = names or ([] if bool(_all_finite({"": state.optimizer})[""]) else ["the optimiser's moments"])
    if not names:
        return
    checkpoints.wait()
    raise Diverged(
        f"stopped after step {int(state.step)}: its update is not finite.\n"
        f"  {diagnosis({'batch': [], 'parameters': names, 'gradients': []})}\n"
        f"  {_sentence(checkpoints.newest())} {ADVICE}"
    )


@jax.jit
def _all_finite(trees: Mapping[str, Any]) -> dict[str, Array]:
    """Whether all floating-point numbers of each tree are finite."""

    def finite(tree: Any) -> Array:
        leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
        return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))

    return {name: finite(tree) for name, tree in trees.items()}


def diagnosis(found: Mapping[str, Any]) -> str:
    """Which inputs, parameters or gradients are not finite, in a sentence; `found` is from `unhealthy`."""
    parameters, gradients = (_modules(found[kind]) for kind in ("parameters", "gradients"))
    if found["batch"]:
        return f"The batch itself holds values that are not finite: {', '.join(found['batch'])}."
    if parameters:
        return f"These parameters are not finite: {_first_four(parameters)}."
    if gradients:
        return f"First bad are the gradients of {_first_four(gradients)}; all parameters are finite."
    return "The same step, run again on its own, is finite: the loss of its parts overflowed only together."


def _modules(names: list[str]) -> list[str]:
    """The modules that parameters belong to, in order."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _first_four(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
