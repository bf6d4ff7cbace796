"""All classic mistakes, the specific ones first."""

from collections.abc import Callable, Iterator

from jaxmodels.compare.diagnosis import (
    activations,
    arithmetic,
    attention,
    images,
    losses,
    norms,
    products,
    recurrent,
    shapes,
)
from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import Variant


RULES: tuple[Callable[[Operation], Iterator[Variant]], ...] = (
    activations.activations,
    activations.gated_units,
    norms.norm_layers,
    norms.statistics,
    norms.written_epsilons,
    attention.fused_attention,
    attention.multi_head_attention,
    recurrent.recurrent_gates,
    recurrent.recurrent_directions,
    attention.masks,
    images.pools,
    images.resizes,
    images.pads,
    images.pixel_shuffles,
    images.patches,
    products.convolutions,
    products.transposed_convolutions,
    products.embeddings,
    losses.losses,
    arithmetic.angles,
    shapes.cuts,
    shapes.reshapes,
    shapes.halves,
    shapes.shifts,
    arithmetic.constants,
    arithmetic.logarithms,
    arithmetic.reductions,
    activations.softmaxes,
    shapes.permuted,
    shapes.joins,
    products.linear_layers,
    arithmetic.products,
    arithmetic.sums,
)


def variants(operation: Operation) -> list[tuple[int, Variant]]:
    """The mistakes that can be made in one operation, each with the place of its rule in the catalogue.

    A rule that meets arguments it does not know contributes nothing.
    """
    found: list[tuple[int, Variant]] = []
    for rank, rule in enumerate(RULES):
        try:
            found += [(rank, variant) for variant in rule(operation)]
        except (
            ArithmeticError,
            AttributeError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            continue
    return found
