"""What every layer takes besides its sizes."""

from typing import TypedDict

from flax import nnx
from jaxtyping import DTypeLike


class LayerOptions(TypedDict):
    """Keyword arguments that a model hands down to all of its layers, as `**layer: Unpack[LayerOptions]`.

    Attributes:
      dtype: type of the computation; None is the common type of inputs and parameters.
      param_dtype: type of fresh parameters.
      rngs: `params` seeds the initial weights.
    """

    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: nnx.Rngs
