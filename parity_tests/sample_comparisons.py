"""Invented comparisons, for tests of how a browser shows their report."""

from dataclasses import replace

from jaxmodels.compare.divergence import Divergence
from jaxmodels.compare.noise import Check, LayerCheck
from jaxmodels.compare.precision import Evidence
from jaxmodels.compare.result import Losses, Result
from jaxmodels.compare.routing import RouterAgreement, Routing


PARAMETERS = [
    f"transformer.layers.{layer}.blocks.{block}.1.net.interactive_windowed_self_attention.to_qkv.conv.weight"
    for layer in range(4)
    for block in range(6)
]


def equal(model: str = "scalable_vit") -> Result:
    """Both sides agree; names and notes are as long as they come."""
    layers = [
        LayerCheck(name.removesuffix(".weight"), 1e-7 * (1 + i), 1e-7, 8e-7 * (1 + i), call=0, kind="output")
        for i, name in enumerate(PARAMETERS)
    ]
    steps = [3.0, 2.5, 2.25]
    shifted = [loss * (1 + 1e-7) for loss in steps]
    return Result(
        model=model,
        dtype="float32",
        parameters=12345678,
        outputs=[Check("output", 4.6e-7, 3e-7, 2.4e-6)],
        layers=layers,
        not_compared={
            "transformer.dropout": "the table has no Flax module for it, and the name is no variable's"
        },
        gradients=[Check(name, 1e-6, 1e-6, 8e-6) for name in PARAMETERS],
        weights=[Check(name, 1e-6, 1e-6, 8e-6) for name in PARAMETERS],
        weight_steps=3,
        losses=Losses(
            jax=steps,
            pytorch=shifted,
            pytorch_other_threads=steps,
            pytorch_float32=shifted,
            pytorch_float64=steps,
            jax_weights_float32=shifted,
            jax_weights_float64=steps,
            threads=(2, 1),
        ),
        loss_checks=[Check("loss 1", 1e-7, 1e-7, 8e-7)],
        divergence=None,
        precision=Evidence("HIGHEST", 1e-7, 1e-7, ok=True),
        routing=Routing(
            [RouterAgreement("transformer.layers.0.0.q_router", 4096, 1, 0.99976, 1e-7, 1e-7, 1e-6)]
        ),
        notes=[
            "PyTorch's table_from_names was not given, so that modules were matched by their order of execution."
        ],
    )


def different(model: str = "colt5") -> Result:
    """One layer is wrong, and so is all that follows."""
    good = equal(model)
    wrong = [replace(check, error=0.5) for check in good.layers[5:]]
    where = Divergence(
        wrong[0].name,
        f"its inputs agree and its outputs differ; the layer before is {good.layers[4].name}",
        0.5,
        "layer",
    )
    return replace(
        good,
        outputs=[Check("output", float("inf"), 3e-7, 2.4e-6)],
        layers=[*good.layers[:5], *wrong],
        gradients=[replace(check, error=0.25) for check in good.gradients],
        divergence=where,
        diagnosis="its kernel is transposed; the transpose removes the difference",
    )


def undecided(model: str = "glom") -> Result:
    """The noise is as large as the signal."""
    noise = "output: PyTorch's float32 and float64 differ by 1.0e+00, so that the tolerance would be 8.0e+00"
    return replace(equal(model), outputs=[Check("output", 1.0, 1.0, 8.0, noise)])


def deep(layers: int = 1000) -> Result:
    """A model of many layers, one of which is wrong."""
    good = equal("deep")
    names = [
        f"encoder.blocks.{i // 10}.{part}.{j}"
        for i, (part, j) in ((i, divmod(i % 10, 5)) for i in range(layers))
    ]
    checks = [
        LayerCheck(name, 1e-7, 1e-7, 8e-7, call=0, kind=kind)
        for name in names
        for kind in ("input", "output")
    ]
    wrong = layers // 2 * 2 + 1
    checks[wrong] = replace(checks[wrong], error=0.5)
    where = Divergence(checks[wrong].name, "it gets the same input and returns another output", 0.5, "layer")
    gradients = [Check(f"{name}.weight", 1e-6, 1e-6, 8e-6) for name in names]
    return replace(good, layers=checks, gradients=gradients, weights=gradients, divergence=where)
