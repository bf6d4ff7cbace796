"""PyTorch models as libraries write them: nested outputs chosen by name, cache objects, masks, keyword arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import linen, nnx
from torch import nn
from transformers.utils import ModelOutput

from jaxmodels.compare import Pair, Result, compare, table_from_names
from parity_tests.toy_pairs import CHANNELS_LAST, in_flax, in_torch, linear, normal, toy


KEY = jax.random.key(0)


class Attention(linen.Module):
    """BERT's self-attention, under its names."""

    heads: int

    @linen.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        split = (self.heads, x.shape[-1] // self.heads)
        q, k, v = (linen.DenseGeneral(split, name=name)(x) for name in ("query", "key", "value"))
        return linen.dot_product_attention(q, k, v, mask=mask).reshape(x.shape)


class Residual(linen.Module):
    width: int

    @linen.compact
    def __call__(self, y: jax.Array, x: jax.Array) -> jax.Array:
        norm = linen.LayerNorm(epsilon=1e-12, use_fast_variance=False, name="LayerNorm")
        return norm(linen.Dense(self.width, name="dense")(y) + x)


class Layer(linen.Module):
    approximate: bool

    @linen.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        y = Attention(2, name="attention_self")(x, mask)
        x = Residual(x.shape[-1], name="attention_output")(y, x)
        y = jax.nn.gelu(linen.Dense(24, name="intermediate_dense")(x), approximate=self.approximate)
        return Residual(x.shape[-1], name="output")(y, x)


class Bert(linen.Module):
    approximate: bool = False

    @linen.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> dict[str, Any]:
        count = input_ids.shape[1]
        x = linen.Embed(19, 16, name="word")(input_ids) + linen.Embed(8, 16, name="position")(
            jnp.arange(count)
        )
        x += linen.Embed(2, 16, name="type")(jnp.zeros_like(input_ids))
        x = linen.LayerNorm(epsilon=1e-12, use_fast_variance=False, name="norm")(x)
        y = Layer(self.approximate, name="layer_0")(x, attention_mask[:, None, None, :] > 0)
        pooled = jnp.tanh(linen.Dense(16, name="pooler")(y[:, 0]))
        return {"last": y, "pooler_output": pooled, "hidden_states": [x, y]}


BERT_NAMES = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "type": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
    "layer_0": "encoder.layer.0",
    "layer_0.attention_self": "encoder.layer.0.attention.self",
    "layer_0.attention_output": "encoder.layer.0.attention.output",
    "layer_0.intermediate_dense": "encoder.layer.0.intermediate.dense",
}


def bert(**options: Any) -> Result:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=19,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
        initializer_range=0.5,
    )
    theirs = transformers.BertModel(config)
    inputs = {"input_ids": np.arange(1, 13).reshape(2, 6), "attention_mask": np.ones((2, 6), int)}
    inputs["attention_mask"][1, 4:] = 0
    module = Bert(**options)
    ours = module, module.init(KEY, **inputs)
    pair = Pair(
        name="BERT",
        ours=ours,
        theirs=theirs,
        table=table_from_names(ours, theirs, BERT_NAMES),
        inputs=inputs,
        call_theirs=lambda model, inputs: model(**inputs, output_hidden_states=True),
        outputs={"last_hidden_state": "last"} | {name: name for name in ("hidden_states", "pooler_output")},
    )
    return compare(pair, steps=0)


class TestHuggingFace:
    def test_bert(self) -> None:
        result = bert()
        assert result.ok, (result.divergence, result.reason)
        names = {check.name for check in result.outputs}
        assert {"output last_hidden_state", "output pooler_output", "output hidden_states.1"} <= names

    def test_wrong_bert(self) -> None:
        result = bert(approximate=True)
        assert "after encoder.layer.0.intermediate.dense" in result.divergence.detail


@dataclass
class WithLogits(ModelOutput):
    """As Hugging Face's models return it."""

    logits: torch.Tensor | None = None
    cache: Any = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


def nested(scale: float = 1.0, **options: Any) -> Pair:
    """A convolution whose output and its square are returned, channels first and last, beside a cache object."""
    options = {"outputs": ("logits", "hidden_states"), **options}
    conv = nnx.Conv(3, 3, (3, 3), padding=1, rngs=nnx.Rngs(0))
    return toy(
        in_flax(
            lambda self, x: {"logits": (y := self.conv(x)).mean((1, 2)), "hidden_states": [y, scale * y**2]},
            conv=conv,
        ),
        in_torch(
            lambda self, x: WithLogits(
                logits=(y := self.conv(x)).mean((2, 3)),
                cache=object(),
                hidden_states=(y, y**2),
            ),
            conv=nn.Conv2d(3, 3, 3, padding=1),
        ),
        normal(2, 3, 3, 3),
        **CHANNELS_LAST,
        **options,
    )


AXES = {"output_axes": {"hidden_states": "b c h w -> b h w c"}}


class TestChosenOutputs:
    def test_right_and_wrong(self) -> None:
        assert compare(nested(**AXES), steps=0).ok
        result = compare(nested(1.1, **AXES), steps=0)
        assert [check.name for check in result.outputs if not check.ok] == ["output hidden_states.1"]

    def test_others_are_left_out_of_the_loss_too(self) -> None:
        result = compare(nested(1.1, outputs=("logits",)), steps=0)
        assert result.ok, result.divergence
        assert [check.name for check in result.outputs] == ["output logits"]

    def test_names_may_differ(self) -> None:
        pair = nested(outputs={"logits": "hidden_states.0"}, output_axes="b c -> b c")
        assert compare(pair, gradients=False).verdict == "different"

    def test_an_object_that_is_not_chosen_is_noted(self) -> None:
        result = compare(nested(outputs=None, **AXES), steps=0)
        assert result.ok, result.divergence
        note = "PyTorch's output cache was not compared: it is of type object"
        assert any(one.startswith(note) for one in result.notes)

    @pytest.mark.usefixtures("unchecked_types")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"outputs": "logits"}, r"outputs must be a tuple of names, .*; got outputs='logits'"),
            ({"outputs": ("logit",)}, r"returns logits, .*, and no 'logit': give outputs=\{PyTorch's"),
            ({"outputs": ("cache",)}, r"outputs must name .*cache"),
            ({"output_axes": {"logits": "b c h -> b h c"}}, r"output_axes must .* got 'logits': 'b c h"),
            ({"output_axes": {"logit": "b c -> c b"}}, r"output_axes must give einops patterns .* 'logit'"),
        ],
    )
    def test_errors(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            compare(nested(**options), gradients=False)


def test_inputs_beyond_the_parameters_reach_the_keyword_arguments() -> None:
    def call(self: Any, x: Any, **others: Any) -> Any:
        return self.layer(x) * others["mask"] + others["offset"]

    def model(of: Callable, layer: Any) -> Any:
        built = of(call, layer=layer)
        setattr(type(built), "forward" if isinstance(built, nn.Module) else "__call__", call)
        return built

    pair = toy(
        model(in_flax, linear(8, 8)),
        model(in_torch, nn.Linear(8, 8)),
        inputs={"x": normal(4, 8), "mask": np.arange(8) < 5, "offset": np.arange(8)},
    )
    assert compare(pair, steps=0).ok
