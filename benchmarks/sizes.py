"""What is timed: five models, each small and medium for a CPU and one size for a GPU, and what they are fed.

Free of PyTorch, so that a process can hold the JAX side alone; `Problem` is what PyTorch's side gets of it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.problem import ModelName, Problem, Size
from jaxmodels.data import emoji, state_of_the_union
from jaxmodels.data.tokens import NUM_TOKENS, encode
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig
from jaxmodels.models.glom import Glom, GlomConfig
from jaxmodels.models.hourglass import HourglassTransformerLM, HourglassTransformerLMConfig
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and the shape of its input.

    Attributes:
      config: of the model.
      batch: examples.
      length: of a text, for the models that read one.
      encoder: MaMMUT's.
      iters: GLOM's steps in the forward pass; None is twice the number of levels.
    """

    config: Any
    batch: int
    length: int = 0
    encoder: SimpleViTConfig | None = None
    iters: int | None = None


WORKLOADS: dict[ModelName, dict[Size, Workload]] = {
    "glom": {
        "small": Workload(config=GlomConfig(dim=64, levels=4, image_size=64, patch_size=8), batch=4),
        "medium": Workload(config=GlomConfig(dim=256, levels=5, image_size=112, patch_size=14), batch=2),
        "gpu": Workload(config=GlomConfig(dim=512, levels=6, image_size=224, patch_size=14), batch=32),
    },
    "hourglass": {
        "small": Workload(
            config=HourglassTransformerLMConfig(
                num_tokens=256,
                dim=128,
                max_seq_len=256,
                depth=(1, 2, 1),
                shorten_factor=2,
                heads=4,
                dim_head=32,
            ),
            batch=4,
            length=256,
        ),
        "medium": Workload(
            config=HourglassTransformerLMConfig(
                num_tokens=256, dim=384, max_seq_len=512, depth=(2, 4, 2), shorten_factor=2, heads=6
            ),
            batch=2,
            length=512,
        ),
        "gpu": Workload(
            config=HourglassTransformerLMConfig(
                num_tokens=256, dim=1024, max_seq_len=2048, depth=(4, 8, 4), shorten_factor=2, heads=16
            ),
            batch=16,
            length=2048,
        ),
    },
    "colt5": {
        "small": Workload(
            config=ConditionalRoutedViTConfig(
                image_size=64,
                patch_size=8,
                num_classes=9,
                dim=64,
                depth=2,
                attn_num_heavy_tokens_q=4,
                attn_num_heavy_tokens_kv=6,
                attn_heavy_dim_head=16,
                attn_heavy_heads=4,
                attn_light_dim_head=16,
                attn_light_heads=2,
                attn_light_window_size=4,
                ff_num_heavy_tokens=16,
                ff_heavy_mult=4,
                ff_light_mult=1,
            ),
            batch=4,
        ),
        "medium": Workload(
            config=ConditionalRoutedViTConfig(
                image_size=256,
                patch_size=16,
                num_classes=9,
                dim=384,
                depth=4,
                attn_num_heavy_tokens_q=16,
                attn_num_heavy_tokens_kv=16,
                attn_heavy_dim_head=64,
                attn_heavy_heads=6,
                attn_light_dim_head=32,
                attn_light_heads=4,
                attn_light_window_size=8,
                ff_num_heavy_tokens=64,
                ff_heavy_mult=4,
                ff_light_mult=2,
            ),
            batch=4,
        ),
        "gpu": Workload(
            config=ConditionalRoutedViTConfig(
                image_size=256,
                patch_size=16,
                num_classes=9,
                dim=1024,
                depth=6,
                attn_num_heavy_tokens_q=16,
                attn_num_heavy_tokens_kv=16,
                attn_heavy_dim_head=64,
                attn_heavy_heads=8,
                attn_light_dim_head=64,
                attn_light_heads=8,
                attn_light_window_size=8,
                ff_num_heavy_tokens=64,
                ff_heavy_mult=4,
                ff_light_mult=2,
            ),
            batch=64,
        ),
    },
    "mammut": {
        "small": Workload(
            config=MaMMUTConfig(
                dim=64,
                num_tokens=NUM_TOKENS,
                depth=2,
                image_dim=64,
                num_img_queries=16,
                dim_head=16,
                heads=4,
            ),
            encoder=SimpleViTConfig(
                image_size=64,
                patch_size=16,
                num_classes=9,
                dim=64,
                depth=2,
                heads=4,
                mlp_dim=128,
                dim_head=16,
                patch_dropout=0.0,
            ),
            batch=4,
            length=64,
        ),
        "medium": Workload(
            config=MaMMUTConfig(
                dim=384, num_tokens=NUM_TOKENS, depth=6, image_dim=384, num_img_queries=64, heads=6
            ),
            encoder=SimpleViTConfig(
                image_size=128,
                patch_size=16,
                num_classes=9,
                dim=384,
                depth=4,
                heads=6,
                mlp_dim=1536,
                patch_dropout=0.0,
            ),
            batch=4,
            length=128,
        ),
        "gpu": Workload(
            config=MaMMUTConfig(
                dim=1024, num_tokens=20_000, depth=12, image_dim=1024, num_img_queries=256, heads=16
            ),
            encoder=SimpleViTConfig(
                image_size=256,
                patch_size=16,
                num_classes=9,
                dim=1024,
                depth=12,
                heads=16,
                mlp_dim=4096,
                patch_dropout=0.0,
            ),
            batch=32,
            length=512,
        ),
    },
    "scalable_vit": {
        "small": Workload(
            config=ScalableViTConfig(
                num_classes=9,
                dim=32,
                depth=(1, 1, 1),
                heads=(1, 2, 4),
                reduction_factor=(4, 2, 1),
                window_size=(8, 4, None),
            ),
            batch=4,
        ),
        "medium": Workload(
            config=ScalableViTConfig(
                num_classes=9,
                dim=64,
                depth=(2, 2, 6, 2),
                heads=(2, 4, 8, 16),
                reduction_factor=(8, 4, 2, 1),
                window_size=(16, 8, None, None),
            ),
            batch=2,
        ),
        "gpu": Workload(
            config=ScalableViTConfig(
                num_classes=9,
                dim=64,
                depth=(2, 2, 20, 2),
                heads=(2, 4, 8, 16),
                ssa_dim_key=(40, 40, 40, 32),
                reduction_factor=(8, 4, 2, 1),
                window_size=(64, 32, None, None),
            ),
            batch=64,
        ),
    },
}
SIDES: dict[Size, int] = {"small": 64, "medium": 128, "gpu": 256}  # pixels, where a config names none


def build(workload: Workload, *, dtype: Any = None, seed: int = 0) -> nnx.Module:
    """The Flax model, with its initial weights moved a little: unit scales and zero biases hide mistakes."""
    rngs, config = nnx.Rngs(seed), workload.config
    match config:
        case GlomConfig():
            model: nnx.Module = Glom(config, dtype=dtype, rngs=rngs)
        case HourglassTransformerLMConfig():
            model = HourglassTransformerLM(config, dtype=dtype, rngs=rngs)
        case ConditionalRoutedViTConfig():
            model = ConditionalRoutedViT(config, dtype=dtype, rngs=rngs)
        case MaMMUTConfig():
            assert workload.encoder is not None
            encoder = SimpleViT(workload.encoder, dtype=dtype, rngs=rngs)
            model = MaMMUT(config, encoder, dtype=dtype, rngs=rngs)
        case ScalableViTConfig():
            model = ScalableViT(config, dtype=dtype, rngs=rngs)
        case _:
            raise TypeError(f"config must be one of the five models'; got a {type(config).__name__}")
    return model


def moved(model: nnx.Module) -> nnx.Module:
    """The model with every parameter off its initial value."""
    rng = np.random.default_rng(0)
    state = nnx.state(model, nnx.Param)
    for _, variable in nnx.to_flat_state(state):
        value = variable[...]
        variable[...] = value + jnp.asarray(0.01 * rng.standard_normal(value.shape), value.dtype)
    nnx.update(model, state)
    return model


def inputs(workload: Workload, side: int) -> dict[str, np.ndarray]:
    """One batch of real data; images are (b, height, width, 3) float32."""
    config, b = workload.config, workload.batch
    if isinstance(config, HourglassTransformerLMConfig):
        text = np.frombuffer(state_of_the_union("test").text, np.uint8)[: b * (workload.length + 1)]
        return {"tokens": text.reshape(b, -1).astype(np.int32)}
    known = emoji("openmoji", skin_tones=False)
    picks = np.linspace(0, len(known) - 1, b).astype(int)
    side = getattr(workload.encoder or config, "image_size", side)
    rows = np.arange(side) * 64 // side
    images = known.images[picks][:, rows][:, :, rows].astype(np.float32) / 127.5 - 1
    if isinstance(config, GlomConfig):
        rng = np.random.default_rng(0)
        decoder = rng.standard_normal((config.dim, 3 * config.patch_size**2)) / config.dim**0.5
        noise = rng.standard_normal(images.shape, np.float32)
        return {"clean": images, "images": images + noise, "decoder": decoder.astype(np.float32)}
    if isinstance(config, MaMMUTConfig):
        captions = [(known.captions[i] + " ") * workload.length for i in picks]
        return {
            "images": images,
            "text": encode([c[: workload.length - 1] for c in captions], workload.length),
        }
    return {"images": images, "labels": known.labels[picks].astype(np.int32)}


def shapes(workload: Workload, side: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of `inputs`, of which only two examples are made."""
    two = inputs(replace(workload, batch=2), side)
    return {
        name: jax.ShapeDtypeStruct(
            value.shape if name == "decoder" else (workload.batch, *value.shape[1:]), value.dtype
        )
        for name, value in two.items()
    }


# What the scaling curves vary: a name for the axis, its values, and the workload at each of them.
Curve = tuple[str, tuple[Any, ...], Callable[[Any], tuple[Workload, int]]]


def _glom(levels_and_iters: tuple[int, int]) -> tuple[Workload, int]:
    levels, iters = levels_and_iters
    base = WORKLOADS["glom"]["medium"]
    return replace(base, config=replace(base.config, dim=128, levels=levels), iters=iters), 0


def _hourglass(length: int) -> tuple[Workload, int]:
    base = WORKLOADS["hourglass"]["medium"]
    config = replace(base.config, dim=256, heads=4, max_seq_len=length)
    return replace(base, config=config, batch=1, length=length), 0


def _colt5(side: int) -> tuple[Workload, int]:
    base = WORKLOADS["colt5"]["medium"]
    return replace(base, config=replace(base.config, image_size=side, dim=192), batch=1), 0


def _mammut(batch: int) -> tuple[Workload, int]:
    return replace(WORKLOADS["mammut"]["medium"], batch=batch), 0


def _scalable_vit(side: int) -> tuple[Workload, int]:
    base = WORKLOADS["scalable_vit"]["medium"]
    config = replace(base.config, dim=32, window_size=(16, 8, None, None))
    return replace(base, config=config, batch=1), side


CURVES: dict[ModelName, Curve] = {
    "glom": ("levels, iterations", ((3, 3), (3, 6), (6, 6), (6, 12), (9, 18)), _glom),
    "hourglass": ("sequence length", (256, 512, 1024, 2048, 4096), _hourglass),
    "colt5": ("image side, px", (128, 256, 384, 512), _colt5),
    "mammut": ("batch", (1, 2, 4, 8), _mammut),
    "scalable_vit": ("image side, px", (128, 256, 384, 512), _scalable_vit),
}


def workload_at(model: ModelName, size: Size, point: int | None = None) -> tuple[Workload, int]:
    """A workload of the table, or with `point` that place of the model's curve, and the side of its images.

    The side counts only where the configuration names none.
    """
    if point is None:
        return WORKLOADS[model][size], SIDES[size]
    _, values, make = CURVES[model]
    return make(values[point])


def problem(model: ModelName, workload: Workload, side: int) -> Problem:
    """The workload in plain Python and NumPy."""
    return Problem(
        model=model,
        arguments=asdict(workload.config),
        encoder=None if workload.encoder is None else asdict(workload.encoder),
        iters=workload.iters,
        inputs=inputs(workload, side),
    )
