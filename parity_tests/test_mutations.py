"""Classic porting mistakes, planted one at a time: `compare` must fail on each and name the layer.

A mutation is a piece of a function's source and what stands there instead; the function is compiled again
with it. A piece that is no longer in the source fails the test, so that no mutation dies unnoticed.
"""

import importlib
import inspect
import textwrap
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flax import nnx

from jaxmodels.compare import Pair, Result, compare
from jaxmodels.compare.subjects import TokenExtractor
from jaxmodels.convert.table import Parameter
from parity_tests.small_pairs import TINY_MODELS, tiny_pair


torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("without_diagnosis")


@dataclass(frozen=True)
class Mutation:
    """`old` in the source of `where` becomes `new`; `layer` must be named."""

    name: str
    model: str
    where: str
    old: str
    new: str
    layer: str


MUTATIONS = [
    Mutation("tanh GELU", "glom", "jaxmodels.models.glom:GroupedFeedForward.__call__",
             "gelu(self.up(levels))", "jax.nn.gelu(self.up(levels))", "bottom_up"),
    Mutation("tanh GELU in a sequential", "hourglass", "jaxmodels.models.hourglass:FeedForward.__call__",
             "gelu(", "jax.nn.gelu(", "transformer.pre_transformer.layers.0.1.fn"),
    Mutation("wrong patch order", "glom", "jaxmodels.models.glom:Glom.__call__",
             "(p1 p2 c)", "(p2 p1 c)", "(model)"),
    Mutation("patches channel-first", "colt5", "jaxmodels.models.colt5:ConditionalRoutedViT.__call__",
             "(p1 p2 c)", "(c p1 p2)", "(model)"),
    Mutation("missing top-level divisor", "glom", "jaxmodels.models.glom:Glom.update",
             ".at[-1].set(3)", "", "(model)"),
    Mutation("self-similarity as a mask", "glom", "jaxmodels.models.glom:ConsensusAttention.__call__",
             "jnp.asarray(SELF_SIMILARITY, logits.dtype)", "jnp.finfo(logits.dtype).min", "attention"),
    Mutation("normalised queries", "glom", "jaxmodels.models.glom:ConsensusAttention.__call__",
             "levels, keys))", "keys, keys))", "attention"),
    Mutation("value before key", "hourglass", "jaxmodels.models.hourglass:Attention.__call__",
             "k, v = jnp.split(self.to_kv", "v, k = jnp.split(self.to_kv", "transformer.pre_transformer.layers.0.0.fn"),
    Mutation("heads split the wrong way", "hourglass", "jaxmodels.models.hourglass:Attention.__call__",
             "b n (h k) -> b h n k", "b n (k h) -> b h n k", "transformer.pre_transformer.layers.0.0.fn"),
    Mutation("no shift before pooling", "hourglass", "jaxmodels.models.hourglass:HourglassTransformer.__call__",
             "x = pad(x, s - 1, 1 - s)", "x = x", "transformer"),
    Mutation("leaking mask", "mammut", "jaxmodels.models.mammut:ParallelTransformerBlock.__call__",
             "causal=True", "causal=False", "layers.0.0.fn"),
    Mutation("swapped SwiGLU halves", "mammut", "jaxmodels.models.mammut:swiglu",
             "x, gate = jnp.split", "gate, x = jnp.split", "layers.0.0.fn"),
    Mutation("interleaved rotary", "mammut", "jaxmodels.nn.positions:rotate",
             "first, second = jnp.split(x, 2, axis=-1)\n    quarter_turn = jnp.concatenate([-second, first], axis=-1)",
             "quarter_turn = jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)", "layers.0.0.fn"),
    Mutation("no attention scale", "mammut", "jaxmodels.nn.attention:_attend",
             " * q.shape[-1] ** -0.5", "", "img_encoder.vit.transformer.layers.0.0"),
    Mutation("interleaved heavy keys and values", "colt5", "jaxmodels.models.colt5:Attention.__call__",
             "(h kv e) -> kv b r h j e", "(h e kv) -> kv b r h j e",
             "transformer.layers.0.0.heavy_attn"),
    Mutation("additive epsilon under the root", "colt5", "jaxmodels.models.colt5:RMSNorm.__call__",
             "l2_normalize(at_least_float32(x))",
             "x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)",
             "transformer.layers.0.0.light_attn.norm"),
    Mutation("position table rows first", "colt5", "jaxmodels.nn.positions:sincos_2d",
             "jnp.sin(columns), jnp.cos(columns), jnp.sin(rows), jnp.cos(rows)",
             "jnp.sin(rows), jnp.cos(rows), jnp.sin(columns), jnp.cos(columns)", "(model)"),
    Mutation("no residual in the position encoder", "scalable_vit", "jaxmodels.models.scalable_vit:PEG.__call__",
             "return out + x", "return out", "layers.0.0.layers.0.2"),
    Mutation("values mixed after the projection", "scalable_vit",
             "jaxmodels.models.scalable_vit:InteractiveWindowedSelfAttention.__call__",
             "self.to_out(out + local)", "self.to_out(out) + self.to_out(local)", "layers.0.0.layers.0.4"),
]  # fmt: skip


def plant(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles the function again with the mistake in it and puts it where every caller finds it."""
    module_name, _, path = mutation.where.partition(":")
    module = importlib.import_module(module_name)
    owner_path, _, name = path.rpartition(".")
    owner = getattr(module, owner_path) if owner_path else module
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    old = textwrap.dedent(mutation.old)
    assert source.count(old) >= 1, f"{mutation.where} no longer contains {old!r}"
    namespace = dict(vars(module))
    exec(compile(source.replace(old, mutation.new), f"<{mutation.name}>", "exec"), namespace)
    if owner_path:
        monkeypatch.setattr(owner, name, namespace[name])
    else:  # a function: whoever imported it holds a reference of its own
        original = getattr(module, name)
        for other in [
            m for n, m in importlib.import_module("sys").modules.items() if n.startswith("jaxmodels")
        ]:
            if getattr(other, name, None) is original:
                monkeypatch.setattr(other, name, namespace[name])


def forward(subject: Pair, dtype: str = "float64") -> Result:
    return compare(subject, dtype=dtype, gradients=False)


@pytest.mark.parametrize("name", list(TINY_MODELS))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_without_a_mistake_everything_agrees(name: str, dtype: str) -> None:
    result = forward(tiny_pair(name), dtype)
    assert result.ok, result.divergence
    assert len(result.layers) > 20


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mistake_is_found_and_located(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(mutation, monkeypatch)
    result = forward(tiny_pair(mutation.model))
    assert not result.ok
    assert result.divergence is not None
    assert result.divergence.layer == mutation.layer, result.divergence


def change_modules(subject: Pair, kind: str, **attributes: Any) -> None:
    for _, module in nnx.iter_modules(subject.ours):
        if type(module).__name__ == kind:
            for name, value in attributes.items():
                assert hasattr(module, name)
                setattr(module, name, value)


def test_flax_epsilon() -> None:
    subject = tiny_pair("hourglass")
    change_modules(subject, "LayerNorm", epsilon=1e-6)
    result = forward(subject, "float32")
    assert result.divergence is not None
    assert result.divergence.layer == "transformer.pre_transformer.layers.0.0.norm"


def test_one_pass_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Visible in float32 where the mean is far from zero, as in a bright image that is not centred."""
    subject = tiny_pair("mammut")
    bright = {**subject.inputs, "images": subject.inputs["images"] * 0.1 + 30}
    subject = replace(subject, inputs=bright)
    assert forward(subject, "float32").ok
    where = "jaxmodels.nn.torch_like:LayerNorm.__call__"
    old = "standardize(at_least_float32(x), self.epsilon)[0]"
    new = "((x - x.mean(-1, keepdims=True)) / jnp.sqrt((x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2 + 1e-5))"
    plant(Mutation("one-pass variance", "mammut", where, old, new, ""), monkeypatch)
    result = forward(subject, "float32")
    assert result.divergence is not None
    assert result.divergence.layer == "img_encoder.vit.to_patch_embedding.1"


def test_same_padding() -> None:
    subject = tiny_pair("scalable_vit")
    change_modules(subject, "Conv", padding="SAME")
    result = forward(subject, "float32")
    assert result.divergence is not None
    assert result.divergence.layer == "to_patches"


@pytest.mark.parametrize(
    ("model", "key", "axes", "layer"),
    [
        ("hourglass", "transformer.pre_transformer.layers.0.0.fn.to_q.weight", "i o -> i o", None),
        ("scalable_vit", "layers.0.0.layers.0.4.local_interactive_module.weight", "o i w h -> h w i o", None),
        ("glom", "bottom_up.net.1.weight", "(o g) i 1 -> g i o", None),
    ],
    ids=["transposed square kernel", "transposed convolution", "groups feature-major"],
)
def test_wrong_layout(model: str, key: str, axes: str, layer: str | None) -> None:
    subject = tiny_pair(model)
    table = tuple(
        entry._replace(axes=axes) if isinstance(entry, Parameter) and entry.theirs == key else entry
        for entry in subject.table
    )
    assert table != subject.table
    result = forward(replace(subject, table=table))
    assert result.divergence is not None
    assert result.divergence.layer == key.rpartition(".")[0]


def test_ties_by_index() -> None:
    """Routing vectors so long that the scores of several tokens are exactly 1."""
    subject = tiny_pair("colt5")
    with torch.no_grad():
        for name, parameter in subject.theirs.named_parameters():
            if name.endswith("routing_token"):
                parameter.mul_(60)
    assert forward(subject).ok
    change_modules(subject, "CoordinateDescentRouter", tie_break="index")
    result = forward(subject)
    assert result.divergence is not None
    assert result.divergence.layer.endswith("router")
    assert result.routing is not None
    assert result.routing.differing > 0


def test_wrong_gradient_with_right_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass agrees everywhere; only the gradient tells."""
    mutation = Mutation(
        "detached gates", "colt5", "jaxmodels.models.colt5:ConditionalRoutedFeedForward.__call__",
        "routed.scores[:, 0, :, None]", "jax.lax.stop_gradient(routed.scores[:, 0, :, None])",
        "transformer.layers.0.1.router",
    )  # fmt: skip
    plant(mutation, monkeypatch)
    result = compare(tiny_pair("colt5"), dtype="float64", steps=0)
    assert all(check.ok for check in result.layers)
    assert result.divergence is not None
    assert result.divergence.layer == mutation.layer, result.divergence


def test_wrong_optimizer_with_right_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim,
        "AdamW",
        lambda *args, betas, **kwargs: original(*args, betas=(0.9, 0.99), **kwargs),
    )
    result = compare(tiny_pair("glom"), dtype="float64", steps=2)
    assert all(check.ok for check in result.gradients)
    assert result.divergence is not None
    assert "after the optimiser steps" in result.divergence.detail


def test_encoder_is_part_of_the_comparison() -> None:
    subject = tiny_pair("mammut")
    assert isinstance(subject.theirs.img_encoder, TokenExtractor)
    assert np.any([twin.theirs.startswith("img_encoder.vit.") for twin in subject.twins])
