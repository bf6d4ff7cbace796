"""Names of a package that are imported when they are first used: what lies behind them may need PyTorch or JAX."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: dict[str, Any], homes: Mapping[str, str]) -> tuple[Callable, Callable]:
    """The functions `__getattr__` and `__dir__` of a package.

    Args:
      package: the package's `globals()`, in which each name is kept once it was used.
      homes: the module in which each public name lives.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        package[name] = getattr(importlib.import_module(homes[name]), name)
        return package[name]

    def names() -> list[str]:
        return sorted({*package, *homes})

    return find, names
