"""The base of the classes that users build."""

from jaxmodels.nn.attention import Implementation
from jaxmodels.nn.remat import RematModule


class Model(RematModule):
    """A model that accepts all three switches of `nnx.view`, whether or not one of its layers has them."""

    def set_view(
        self,
        remat: bool | None = None,
        attention: Implementation | None = None,
        deterministic: bool | None = None,
    ) -> None:
        """Used by `nnx.view`, which passes them to the layers as well.

        Args:
          remat: recompute the activations of every layer in the backward pass.
          attention: how attention is computed; see `attend`.
          deterministic: False turns dropout on.
        """
        super().set_view(remat)
