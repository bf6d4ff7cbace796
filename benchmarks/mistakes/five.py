"""Mistakes planted in the five models of this package: a piece of their source, replaced."""

import importlib
import inspect
import sys
import textwrap
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

from jaxmodels.compare import Pair
from jaxmodels.compare.subjects import default_model, pair_of
from jaxmodels.models import ModelName


class Replacement(NamedTuple):
    """A mistake: `old` in the source of `where`, module:function, becomes `new`; `layer` is at fault."""

    kind: str
    model: ModelName
    where: str
    old: str
    new: str
    layer: str


MODELS = "jaxmodels.models"
FIRST = "transformer.pre_transformer.layers.0"
REPLACEMENTS = (
    Replacement("tanh GELU", "glom", f"{MODELS}.glom:GroupedFeedForward.__call__",
                "gelu(self.up(levels))", "jax.nn.gelu(self.up(levels))", "bottom_up"),
    Replacement("patches with rows and columns exchanged", "glom", f"{MODELS}.glom:Glom.__call__",
                "(p1 p2 c)", "(p2 p1 c)", "(model)"),
    Replacement("patches with channels first", "glom", f"{MODELS}.glom:Glom.__call__",
                "(p1 p2 c)", "(c p1 p2)", "(model)"),
    Replacement("tanh GELU", "hourglass", f"{MODELS}.hourglass:FeedForward.__call__",
                "gelu(", "jax.nn.gelu(", f"{FIRST}.1.fn"),
    Replacement("gate and value exchanged", "hourglass", f"{MODELS}.hourglass:Attention.__call__",
                "k, v = jnp.split(self.to_kv", "v, k = jnp.split(self.to_kv", f"{FIRST}.0.fn"),
    Replacement("heads split as (dim, head)", "hourglass", f"{MODELS}.hourglass:Attention.__call__",
                "b n (h k) -> b h n k", "b n (k h) -> b h n k", f"{FIRST}.0.fn"),
    Replacement("mask left out", "mammut", f"{MODELS}.mammut:ParallelTransformerBlock.__call__",
                "causal=True", "causal=False", "layers.0.0.fn"),
    Replacement("gate and value exchanged", "mammut", f"{MODELS}.mammut:swiglu",
                "x, gate = jnp.split", "gate, x = jnp.split", "layers.0.0.fn"),
    Replacement("attention not scaled", "mammut", "jaxmodels.nn.attention:_attend",
                " * q.shape[-1] ** -0.5", "", "img_encoder.vit.transformer.layers.0.0"),
    Replacement("patches with channels first", "colt5", f"{MODELS}.colt5:ConditionalRoutedViT.__call__",
                "(p1 p2 c)", "(c p1 p2)", "(model)"),
    Replacement("heads split as (dim, head)", "colt5", f"{MODELS}.colt5:Attention.__call__",
                "(h kv e) -> kv b r h j e", "(h e kv) -> kv b r h j e", "transformer.layers.0.0.heavy_attn"),
    Replacement("residual left out", "scalable_vit", f"{MODELS}.scalable_vit:PEG.__call__",
                "return out + x", "return out", "layers.0.0.layers.0.2"),
)  # fmt: skip


def build(model: ModelName, seed: int) -> Pair:
    """The pair of a small default model with random weights."""
    return pair_of(default_model(model, seed), batch=2)


@contextmanager
def planted(mistake: Replacement) -> Generator[None]:
    """The function is compiled again with the mistake in it, and stands wherever somebody imported it.

    `parity_tests.test_mutations` does the same under pytest; neither may import the other.

    Raises:
      ValueError: the source no longer holds the piece.
    """
    module_name, _, path = mistake.where.partition(":")
    module = importlib.import_module(module_name)
    owner_path, _, name = path.rpartition(".")
    owner = getattr(module, owner_path) if owner_path else module
    original = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    if mistake.old not in source:
        raise ValueError(f"{mistake.where} no longer contains {mistake.old!r}")
    namespace = dict(vars(module))
    exec(compile(source.replace(mistake.old, mistake.new), f"<{mistake.kind}>", "exec"), namespace)
    holders = [owner]
    if not owner_path:
        loaded = [one for key, one in sys.modules.items() if key.startswith("jaxmodels")]
        holders = [one for one in loaded if getattr(one, name, None) is original]
    with ExitStack() as stack:
        for holder in holders:
            stack.enter_context(mock.patch.object(holder, name, namespace[name]))
        yield
