"""Dropout that is off until it is asked for."""

from flax import nnx
from jaxtyping import Array, Float


class Dropout(nnx.Dropout):
    """Zeroes entries at random and scales the others by 1 / (1 - rate), after `nnx.view(model, deterministic=False)`.

    Off by default (Flax: on), and without random numbers of its own: the caller passes them.
    """

    def __init__(self, rate: float) -> None:
        super().__init__(rate, deterministic=True)

    def __call__(  # ty: ignore[incompatible-method-override]
        self, inputs: Float[Array, "..."], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "..."]:
        """Drops entries of `inputs`; ValueError when dropout is on and `rngs` is not an `nnx.Rngs`."""
        return super().__call__(inputs, rngs=self.require_rngs(rngs)) if self.active else inputs

    @property
    def active(self) -> bool:
        """Whether a call drops anything."""
        return not self.deterministic and self.rate > 0

    @staticmethod
    def require_rngs(rngs: nnx.Rngs | None) -> nnx.Rngs:
        """Returns `rngs`; ValueError unless it is an `nnx.Rngs`."""
        if not isinstance(rngs, nnx.Rngs):  # a bare key would give every layer the same mask
            raise ValueError(
                "rngs must be an nnx.Rngs when deterministic=False and a dropout rate is > 0; "
                f"got {type(rngs).__name__}; pass rngs=nnx.Rngs(dropout=key)"
            )
        return rngs
