"""Which library a JAX side is of."""

import sys
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxmodels.compare.adapters.protocol import Adapted, Adapter


def as_nnx(ours: Any) -> Any:
    """A JAX side as an `nnx.Module`.

    Args:
      ours: an `nnx.Module`; an Equinox module, alone or with its state; a Linen module with its variables; Haiku's
        transformed functions with parameters and state; or an adapter, such as `Linen(…)` or `Function(…)`.

    Returns:
      The module; anything else as it is.
    """
    if isinstance(ours, nnx.Module):
        return ours
    adapter = ours if isinstance(ours, Adapter) else _adapter_of(ours)
    return ours if adapter is None else Adapted(adapter)


def refusal_of(given: Any, argument: str) -> str:
    """What to say where `as_nnx` could not make a module of `given`, whose class is named."""
    return (
        f"{argument} must be an nnx.Module; got a {type(given).__name__}; of other libraries, give an Equinox module, "
        "(Linen module, variables), Haiku(transformed, params, state) or Function(function, params)"
    )


def _adapter_of(ours: Any) -> Adapter | None:
    """The adapter for an object of a library, which only a caller can bring who has imported it."""
    model, *rest = ours if type(ours) in (tuple, list) and ours else (ours,)
    mappings = all(isinstance(part, Mapping) for part in rest)
    if isinstance(model, _classes("flax.linen", "Module")) and len(rest) == 1 and mappings:
        from jaxmodels.compare.adapters.linen import Linen

        return Linen(model, *rest)
    if isinstance(model, _classes("equinox", "Module")) and (
        not rest or (len(rest) == 1 and isinstance(rest[0], _classes("equinox.nn", "State")))
    ):
        from jaxmodels.compare.adapters.equinox import Equinox

        return Equinox(model, *rest)
    transformed = _classes("haiku", "Transformed", "TransformedWithState")
    if isinstance(model, transformed) and len(rest) in (1, 2) and mappings:
        from jaxmodels.compare.adapters.haiku import Haiku

        return Haiku(model, *rest)
    return None


def _classes(module: str, *names: str) -> tuple[type, ...]:
    """Classes of a library that is imported already; none of another one."""
    library = sys.modules.get(module)
    return tuple(getattr(library, name) for name in names) if library else ()
