"""What the routers of a model chose, as a capture keeps it: indices and margins by "router/indices" and so on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmodels.compare.calls import PairError
from jaxmodels.compare.routing import Choice


Indices = list[np.ndarray | None]


def routes_of(
    routed: Any, routers: Sequence[str], to_numpy: Callable[[Any], np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of what a `routing` function returns.

    Raises:
      PairError: not one choice per router.
    """
    if len(routed) != len(routers):
        raise PairError(
            f"routing must return one choice for each of the {len(routers)} routers; got {len(routed)}"
        )
    found: dict[str, np.ndarray] = {}
    for i, router in enumerate(routed):
        if router.indices is not None:
            found[f"{i}/indices"], found[f"{i}/margin"] = to_numpy(router.indices), to_numpy(router.margin)
    return found


def repeated(routes: Mapping[str, Any], count: int) -> Indices:
    """The indices of each router, as `routing=` takes them; None where a router takes all tokens."""
    return [routes.get(f"{i}/indices") for i in range(count)]


def at(routes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The routes of one pass, "forward" or "step 1" and so on."""
    prefix = f"{where}/"
    return {key.removeprefix(prefix): value for key, value in routes.items() if key.startswith(prefix)}


def choices_of(routes: Mapping[str, Any], routers: Sequence[str]) -> list[Choice]:
    """The choices of the forward pass, as `routing.agreement` takes them."""
    found = []
    forward = at(routes, "forward")
    for i, name in enumerate(routers):
        indices = forward.get(f"{i}/indices")
        if indices is None:
            found.append(Choice(name, None, np.zeros(0)))
        else:
            margin = np.asarray(forward[f"{i}/margin"], np.float64).ravel()
            found.append(Choice(name, indices.reshape(-1, indices.shape[-1]), margin))
    return found
