"""The table of two models whose names need not agree."""

from collections.abc import Callable
from typing import Any

import jax
import torch
from flax import nnx

from jaxmodels.compare.calls import call_model
from jaxmodels.compare.inference.judgement import judge
from jaxmodels.compare.inference.maps import Undecided
from jaxmodels.compare.inference.search import Search
from jaxmodels.compare.inference.sides import FlaxSide, TorchSide
from jaxmodels.compare.inference.twins import twins_of
from jaxmodels.compare.pair import Inputs
from jaxmodels.compare.preparation import cast, one_sided_notes
from jaxmodels.convert.table import Entry, Parameter


class UndecidedError(ValueError):
    """A table that could not be inferred.

    Attributes:
      table: what is sure.
      undecided: what is not, with reasons.
    """

    def __init__(self, table: tuple[Entry, ...], undecided: tuple[Undecided, ...]) -> None:
        listed = "".join(f"\n  {one}" for one in undecided)
        super().__init__(
            f"the weights of the two models could not be paired; give names to table_from_names, or a map:{listed}"
        )
        self.table, self.undecided = table, undecided


def infer_table(
    ours: Any,
    theirs: torch.nn.Module,
    inputs: Inputs,
    *,
    to_ours: Callable[[Inputs], Inputs] = lambda inputs: inputs,
    call_ours: Callable[..., Any] = call_model,
    call_theirs: Callable[..., Any] = call_model,
    only_theirs: tuple[str, ...] = (),
    only_ours: tuple[str, ...] = (),
) -> tuple[Entry, ...]:
    """The table of two models, whatever their parameters are called.

    Names, shapes and the order of execution propose which parameter is which. Computing decides: both models get the
    same random weights in float64, and a layout counts only if two layers then return the same. Neither model is
    changed.

    Args:
      ours: the JAX model, as a `Pair` takes it.
      theirs: the PyTorch model.
      inputs: arrays or tensors by name, in PyTorch's layout, as a `Pair` has them.
      to_ours, call_ours, call_theirs: as a `Pair` has them. Outputs belong together by their names.
      only_theirs, only_ours: parameters, or modules with all they hold, that one side lacks on purpose. They keep
        their values.

    Raises:
      UndecidedError: parameters without a counterpart, or with several that nothing tells apart. It lists them and
        has the rest of the table, both of which `write_map` writes to a file.
      ValueError: a model that fails on these inputs, or a name that its model does not have.
    """
    with jax.enable_x64(True):
        here = FlaxSide(ours, to_ours(cast(inputs, "float64")), call_ours, only_ours)
        paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(here.model))]
        one_sided_notes(only_theirs, only_ours, list(theirs.state_dict()), paths)
        there = TorchSide(
            theirs, inputs, call_theirs, counterparts=len(here.variables), only_theirs=only_theirs
        )
        search = Search(here, there)
        search.solve()
        sure, undecided = judge(search)
    table = (*twins_of(here.model, theirs, [entry for entry in sure if isinstance(entry, Parameter)]), *sure)
    if undecided:
        raise UndecidedError(table, undecided)
    return table
