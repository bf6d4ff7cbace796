"""Small models of every class, filled with known bits without compiling anything."""

from collections.abc import Callable
from functools import cache

import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxmodels as jm
from jaxmodels.nn.positions import inverse_frequencies


VIT = jm.SimpleViTConfig(
    image_size=(8, 4), patch_size=4, num_classes=3, dim=8, depth=2, heads=2, mlp_dim=12, dim_head=3
)
MAMMUT = jm.MaMMUTConfig(
    dim=8, num_tokens=13, depth=3, cross_attend_layers=(1, 3), dim_latents=5, image_dim=8, num_img_queries=3,
    dim_head=4, heads=2, ff_mult=2, caption_loss_weight=0.5, pad_id=-1,
)  # fmt: skip
COLT5 = jm.ConditionalRoutedViTConfig(
    image_size=(8, 16), patch_size=(2, 4), num_classes=3, dim=8, depth=2, attn_num_heavy_tokens_q=2,
    attn_num_heavy_tokens_kv=2, attn_heavy_dim_head=5, attn_heavy_heads=2, attn_light_dim_head=3,
    attn_light_heads=2, attn_light_window_size=2, ff_num_heavy_tokens=3, ff_heavy_mult=1.5, ff_light_mult=0.5,
    router_kwargs={"n_iters": 7}, attn_num_routed_kv=2, tie_break="index",
)  # fmt: skip
SCALABLE = jm.ScalableViTConfig(
    num_classes=3, dim=4, depth=(2, 1), heads=(2, 1), reduction_factor=(2, 1), window_size=(2, None),
    iwsa_dim_key=3, iwsa_dim_value=5, ssa_dim_key=(2, 7), ssa_dim_value=3, ff_expansion_factor=2, dropout=0.1,
)  # fmt: skip
NESTED = jm.HourglassTransformerLMConfig(
    num_tokens=11, dim=6, max_seq_len=10, depth=(1, (0, 1, 2), 1), shorten_factor=(3, 2), heads=2, dim_head=3
)
LINEAR = jm.HourglassTransformerConfig(
    dim=6, depth=(1, (0, 1, 0), 2), shorten_factor=(2, 3), updown_sample_type="linear", heads=3, dim_head=2,
    attn_resampling=False, causal=True, norm_out=True,
)  # fmt: skip
GLOM = jm.GlomConfig(dim=4, levels=3, image_size=6, patch_size=2, consensus_self=True)

# One per class, and more where an option changes which weights there are.
MODELS: dict[str, Callable[[], nnx.Module]] = {
    "Glom": lambda: jm.Glom(GLOM, rngs=nnx.Rngs(0)),
    "Glom, local": lambda: jm.Glom(
        jm.GlomConfig(dim=4, levels=2, image_size=6, patch_size=2, local_consensus_radius=2**0.5),
        rngs=nnx.Rngs(0),
    ),
    "HourglassTransformer": lambda: jm.HourglassTransformer(LINEAR, rngs=nnx.Rngs(0)),
    "HourglassTransformerLM": lambda: jm.HourglassTransformerLM(NESTED, rngs=nnx.Rngs(0)),
    "HourglassTransformerLM, flat": lambda: jm.HourglassTransformerLM(
        jm.HourglassTransformerLMConfig(num_tokens=5, dim=4, max_seq_len=3, depth=2, heads=2, dim_head=2),
        rngs=nnx.Rngs(0),
    ),
    "ConditionalRoutedViT": lambda: jm.ConditionalRoutedViT(COLT5, rngs=nnx.Rngs(0)),
    "MaMMUT": lambda: jm.MaMMUT(MAMMUT, rngs=nnx.Rngs(0)),
    "MaMMUT, SimpleViT": lambda: jm.MaMMUT(
        MAMMUT, img_encoder=jm.SimpleViT(VIT, rngs=nnx.Rngs(1)), rngs=nnx.Rngs(0)
    ),
    "ScalableViT": lambda: jm.ScalableViT(SCALABLE, rngs=nnx.Rngs(0)),
    "SimpleViT": lambda: jm.SimpleViT(VIT, rngs=nnx.Rngs(0)),
}


def shapes(name: str) -> nnx.Module:
    """The model as shapes without arrays."""
    return nnx.clone(_shapes(name))


@cache
def _shapes(name: str) -> nnx.Module:
    return nnx.eval_shape(MODELS[name])


def filled(name: str, dtype: str = "float32", seed: int = 0) -> nnx.Module:
    """The model with random weights in `dtype`."""
    model = shapes(name)
    rng = np.random.default_rng(seed)
    for path, variable in variables(model).items():
        if path.endswith("inv_freq"):
            variable.set_value(jnp.asarray(inverse_frequencies(2 * variable.shape[0])))
        else:
            variable.set_value(jnp.asarray(rng.standard_normal(variable.shape), dtype))
    return model


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every variable under its dotted path."""
    return {
        ".".join(map(str, path)): leaf
        for path, leaf in nnx.iter_graph(model)
        if isinstance(leaf, nnx.Variable)
    }


def bits(arrays: dict) -> dict[str, tuple]:
    """Keys in order with dtype, shape and bytes, for comparisons that see -0.0 and NaN payloads."""
    return {key: (str(a.dtype), a.shape, np.asarray(a).tobytes()) for key, a in arrays.items()}


def weights(model: nnx.Module) -> dict[str, tuple]:
    """The bits of every variable of a model, and whether it has any."""
    return {
        path: (variable.shape, str(variable.dtype), _bytes(variable.get_value()))
        for path, variable in variables(model).items()
    }


def _bytes(value: object) -> bytes | None:
    return np.asarray(value).tobytes() if hasattr(value, "__array__") else None
