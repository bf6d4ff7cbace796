"""`nnx.view` switches attention, rematerialisation and dropout of every model, whatever layers it has."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmodels.models
from jaxmodels import Glom, GlomConfig
from tests.small_models import IMAGES, MODELS


@pytest.mark.parametrize("make", MODELS)
def test_every_model_takes_every_switch(make: Callable) -> None:
    model, _ = make()

    for switch in ({"attention": "cudnn"}, {"remat": True}, {"deterministic": False}):
        assert type(nnx.view(model, **switch)) is type(model)
    with pytest.raises(ValueError, match="Unused keys"):
        nnx.view(model, determinstic=False)


@pytest.mark.parametrize(
    ("make", "kernels"),
    list(zip(MODELS, [1, 4, 4, 8, 6], strict=True)),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_attention_obeys_the_switch(
    make: Callable, kernels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often a forward pass calls the fused kernel, which here takes every shape and type."""
    calls = []

    def kernel(q, k, v, **_):
        calls.append(q.shape)
        return jnp.zeros((*q.shape[:-1], v.shape[-1]), v.dtype)

    monkeypatch.setattr("jaxmodels.nn.attention.cudnn_accepts", lambda *_: True)
    monkeypatch.setattr("jaxmodels.nn.attention.cudnn_attention", kernel)
    model, call = make()

    jax.eval_shape(call, nnx.view(model, attention="cudnn", deterministic=True))

    assert len(calls) == kernels


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(
    ("attention", "platform", "name"),
    [("cudnn", "cuda", r"__cudnn\$fmha\w*Backward"), ("pallas", "tpu", "@tpu_custom_call")],
    ids=["cudnn", "pallas"],
)
def test_the_gradient_of_every_model_lowers_with_kernels(
    make: Callable, attention: str, platform: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each small model in bfloat16, with dropout off. Many of its lengths are odd, or 1 query and 2 keys."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    model, call = make(dtype=jnp.bfloat16)
    view = nnx.view(model, attention=attention, deterministic=True)
    graphdef, parameters, rest = nnx.split(view, nnx.Param, ...)

    def loss(parameters: nnx.State) -> jax.Array:
        return jnp.mean(call(nnx.merge(graphdef, parameters, rest)).astype(jnp.float32))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # the kernels promote
        lowered = jax.jit(jax.grad(loss)).trace(parameters).lower(lowering_platforms=(platform,))

    assert re.search(name, lowered.as_text())


def test_no_model_computes_a_softmax_of_its_own() -> None:
    """Except GLOM without self-consensus; a comment in glom.py says why."""
    folder = Path(jaxmodels.models.__file__).parent
    found = {file.name: file.read_text().count("softmax(") for file in folder.glob("*.py")}
    assert {name: count for name, count in found.items() if count} == {"glom.py": 1}


@pytest.mark.parametrize("radius", [0, 1.5])
def test_consensus_with_itself_goes_through_attend(radius: float) -> None:
    config = GlomConfig(
        dim=16, levels=2, image_size=32, patch_size=8, consensus_self=True, local_consensus_radius=radius
    )
    model = nnx.view(Glom(config, rngs=nnx.Rngs(0)), attention="cudnn")
    np.testing.assert_allclose(model(IMAGES), nnx.view(model, attention="xla")(IMAGES), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", MODELS)
def test_every_call_takes_rngs(make: Callable) -> None:
    """So that a caller need not know which model has dropout."""
    parameter = inspect.signature(type(make()[0]).__call__).parameters["rngs"]
    assert parameter.kind is parameter.KEYWORD_ONLY
    assert parameter.default is None
