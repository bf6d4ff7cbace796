"""Layers whose activations are recomputed in the backward pass instead of being kept for it."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx


Method = TypeVar("Method", bound=Callable)


class RematModule(nnx.Module):
    """A layer whose `rematerialized` methods keep only their inputs, after `nnx.view(model, remat=True)`."""

    remat = False

    def set_view(self, remat: bool | None = None) -> None:
        """Used by `nnx.view`.

        Args:
          remat: recompute activations in the backward pass.
        """
        if remat is not None:
            self.remat = remat


def rematerialized(call: Method) -> Method:
    """A method of a `RematModule` that goes through `nnx.remat` when the module's `remat` is True.

    It saves memory on accelerators; on a CPU XLA undoes it, by merging the second computation with the first.
    """

    @functools.wraps(call)
    def wrapper(self: RematModule, *args: Any, **kwargs: Any) -> Any:
        if not self.remat:
            return call(self, *args, **kwargs)
        # Without `graph_updates` only what a call changes is written back: the counts of random number streams.
        recomputed = nnx.remat(lambda self, args, kwargs: call(self, *args, **kwargs), graph_updates=False)
        return recomputed(self, args, kwargs)

    return wrapper  # ty: ignore[invalid-explicit-return]
