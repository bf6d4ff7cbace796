"""Where JAX may stop a gradient that PyTorch lets through, or the reverse. Needs no JAX."""

from collections.abc import Sequence

import torch

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.search import Candidate
from jaxmodels.compare.diagnosis.variant import Variant, instead, on_result


MOST_PLACES = 400  # at which a missing detach is looked for


def gradient_candidates(operations: Sequence[Operation]) -> list[Candidate]:
    """Gradients that JAX lets through where PyTorch stops them, and the reverse."""
    candidates = []

    def add(operation: Operation, variant: Variant) -> None:
        candidates.append(Candidate(0, variant, (operation,), {operation.index: variant.change}))

    stopped = [one for one in operations if one.name in ("detach", "detach_", "stop_gradient")]
    through = instead(lambda x, *_, **__: x)
    what = "JAX differentiates through what PyTorch detaches"
    for operation in stopped:
        add(operation, Variant("detach", what, "jax.lax.stop_gradient", through))
    if len(stopped) > 1:
        changes = {one.index: through for one in stopped}
        variant = Variant("detach", what, "jax.lax.stop_gradient", through)
        candidates.append(Candidate(0, variant, tuple(stopped), changes))
    for operation in list(reversed(operations))[:MOST_PLACES]:
        what = f"JAX stops the gradient of {operation.name}, PyTorch does not"
        add(operation, Variant("detach", what, "leaving jax.lax.stop_gradient out", on_result(_detached)))
    return candidates


def _detached(result: object) -> object:
    if isinstance(result, torch.Tensor):
        return result.detach()
    return tuple(map(_detached, result)) if isinstance(result, tuple) else result
