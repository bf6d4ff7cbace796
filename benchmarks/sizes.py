"""What is timed: five models, each in two sizes for a CPU and one for a GPU, with real inputs.

Free of PyTorch, so that a process can hold JAX alone. PyTorch gets the workload as a `Problem`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.problem import Problem, Size
from jaxmodels.data import emoji, state_of_the_union
from jaxmodels.data.tokens import NUM_TOKENS, encode
from jaxmodels.models import ModelName
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig
from jaxmodels.models.glom import Glom, GlomConfig
from jaxmodels.models.hourglass import HourglassTransformerLM
from jaxmodels.models.hourglass_config import HourglassTransformerLMConfig
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and the shape of its inputs.

    Attributes:
      config: the model's configuration.
      batch: number of examples.
      length: ids of a text, for the models that read one.
      encoder: configuration of MaMMUT's image encoder.
      iters: GLOM's steps in the forward pass; None is twice the number of levels.
    """

    config: Any
    batch: int
    length: int = 0
    encoder: SimpleViTConfig | None = None
    iters: int | None = None


# These sizes are the benchmark's own. Presets and comparisons have similar ones, but must be able to change theirs
# without making earlier measurements incomparable.
GLOM = GlomConfig(dim=256, levels=5, image_size=112, patch_size=14)
HOURGLASS = HourglassTransformerLMConfig(
    num_tokens=256, dim=384, max_seq_len=512, depth=(2, 4, 2), shorten_factor=2, heads=6
)
COLT5 = ConditionalRoutedViTConfig(
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
)
MAMMUT = MaMMUTConfig(dim=384, num_tokens=NUM_TOKENS, depth=6, image_dim=384, num_img_queries=64, heads=6)
ENCODER = SimpleViTConfig(
    image_size=128,
    patch_size=16,
    num_classes=9,
    dim=384,
    depth=4,
    heads=6,
    mlp_dim=1536,
    patch_dropout=0.0,
)
SCALABLE_VIT = ScalableViTConfig(
    num_classes=9,
    dim=64,
    depth=(2, 2, 6, 2),
    heads=(2, 4, 8, 16),
    reduction_factor=(8, 4, 2, 1),
    window_size=(16, 8, None, None),
)
MEDIUM: dict[ModelName, Workload] = {
    "glom": Workload(config=GLOM, batch=2),
    "hourglass": Workload(config=HOURGLASS, batch=2, length=512),
    "colt5": Workload(config=COLT5, batch=4),
    "mammut": Workload(config=MAMMUT, encoder=ENCODER, batch=4, length=128),
    "scalable_vit": Workload(config=SCALABLE_VIT, batch=2),
}
SMALL: dict[ModelName, Workload] = {
    "glom": Workload(config=replace(GLOM, dim=64, levels=4, image_size=64, patch_size=8), batch=4),
    "hourglass": Workload(
        config=replace(HOURGLASS, dim=128, max_seq_len=256, depth=(1, 2, 1), heads=4, dim_head=32),
        batch=4,
        length=256,
    ),
    "colt5": Workload(
        config=replace(
            COLT5,
            image_size=64,
            patch_size=8,
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
            ff_light_mult=1,
        ),
        batch=4,
    ),
    "mammut": Workload(
        config=replace(MAMMUT, dim=64, depth=2, image_dim=64, num_img_queries=16, dim_head=16, heads=4),
        encoder=replace(ENCODER, image_size=64, dim=64, depth=2, heads=4, mlp_dim=128, dim_head=16),
        batch=4,
        length=64,
    ),
    "scalable_vit": Workload(
        config=replace(
            SCALABLE_VIT,
            dim=32,
            depth=(1, 1, 1),
            heads=(1, 2, 4),
            reduction_factor=(4, 2, 1),
            window_size=(8, 4, None),
        ),
        batch=4,
    ),
}
GPU: dict[ModelName, Workload] = {
    "glom": Workload(config=replace(GLOM, dim=512, levels=6, image_size=224), batch=32),
    "hourglass": Workload(
        config=replace(HOURGLASS, dim=1024, max_seq_len=2048, depth=(4, 8, 4), heads=16),
        batch=16,
        length=2048,
    ),
    "colt5": Workload(
        config=replace(
            COLT5, dim=1024, depth=6, attn_heavy_heads=8, attn_light_dim_head=64, attn_light_heads=8
        ),
        batch=64,
    ),
    "mammut": Workload(
        config=replace(
            MAMMUT, dim=1024, num_tokens=20_000, depth=12, image_dim=1024, num_img_queries=256, heads=16
        ),
        encoder=replace(ENCODER, image_size=256, dim=1024, depth=12, heads=16, mlp_dim=4096),
        batch=32,
        length=512,
    ),
    "scalable_vit": Workload(
        config=replace(
            SCALABLE_VIT,
            depth=(2, 2, 20, 2),
            ssa_dim_key=(40, 40, 40, 32),
            window_size=(64, 32, None, None),
        ),
        batch=64,
    ),
}
WORKLOADS: dict[ModelName, dict[Size, Workload]] = {
    model: {"small": SMALL[model], "medium": MEDIUM[model], "gpu": GPU[model]} for model in MEDIUM
}
IMAGE_SIZES: dict[Size, int] = {
    "small": 64,
    "medium": 128,
    "gpu": 256,
}  # for the models whose config has none


def build(workload: Workload, *, dtype: Any = None, seed: int = 0) -> nnx.Module:
    """The Flax model with its initial weights."""
    layer: dict[str, Any] = {"dtype": dtype, "rngs": nnx.Rngs(seed)}
    match workload.config:
        case GlomConfig():
            return Glom(workload.config, **layer)
        case HourglassTransformerLMConfig():
            return HourglassTransformerLM(workload.config, **layer)
        case ConditionalRoutedViTConfig():
            return ConditionalRoutedViT(workload.config, **layer)
        case MaMMUTConfig():
            assert workload.encoder is not None
            return MaMMUT(workload.config, SimpleViT(workload.encoder, **layer), **layer)
        case ScalableViTConfig():
            return ScalableViT(workload.config, **layer)
        case config:
            raise TypeError(f"config must be one of the five models'; got a {type(config).__name__}")


def perturb(model: nnx.Module) -> nnx.Module:
    """Adds a little noise to every parameter: unit scales and zero biases would hide mistakes."""
    rng = np.random.default_rng(0)
    state = nnx.state(model, nnx.Param)
    for _, variable in nnx.to_flat_state(state):
        value = variable[...]
        variable[...] = value + jnp.asarray(0.01 * rng.standard_normal(value.shape), value.dtype)
    nnx.update(model, state)
    return model


def inputs(workload: Workload, image_size: int) -> dict[str, np.ndarray]:
    """One batch of real data.

    Args:
      workload: whose inputs.
      image_size: height and width of the images, if the config has none.

    Returns:
      Some of: images and clean (b, height, width, 3) float32, tokens (b, length + 1) int32, text (b, length) int32,
      labels (b,) int32, decoder (dim, pixels of a patch) float32.
    """
    config, b = workload.config, workload.batch
    if isinstance(config, HourglassTransformerLMConfig):
        text = np.frombuffer(state_of_the_union("test").text, np.uint8)[: b * (workload.length + 1)]
        return {"tokens": text.reshape(b, -1).astype(np.int32)}
    known = emoji("openmoji", skin_tones=False)
    picks = np.linspace(0, len(known) - 1, b).astype(int)
    image_size = getattr(workload.encoder or config, "image_size", image_size)
    nearest = np.arange(image_size) * 64 // image_size
    images = known.images[picks][:, nearest][:, :, nearest].astype(np.float32) / 127.5 - 1
    if isinstance(config, GlomConfig):
        rng = np.random.default_rng(0)
        decoder = rng.standard_normal((config.dim, 3 * config.patch_size**2)) / config.dim**0.5
        noise = rng.standard_normal(images.shape, np.float32)
        return {"clean": images, "images": images + noise, "decoder": decoder.astype(np.float32)}
    if isinstance(config, MaMMUTConfig):
        captions = [_fill(known.captions[i], workload.length - 1) for i in picks]
        return {"images": images, "text": encode(captions, workload.length)}
    return {"images": images, "labels": known.labels[picks].astype(np.int32)}


def _fill(caption: str, length: int) -> str:
    """Repeats the caption up to `length` bytes, without a part of a character at the end."""
    return (f"{caption} " * length).encode()[:length].decode(errors="ignore")


def shapes(workload: Workload, image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of `inputs`, made from two examples."""
    two = inputs(replace(workload, batch=2), image_size)
    return {
        name: jax.ShapeDtypeStruct(
            value.shape if name == "decoder" else (workload.batch, *value.shape[1:]), value.dtype
        )
        for name, value in two.items()
    }


# Of a scaling curve: the name of its axis, its points, and the workload and image size at a point.
Curve = tuple[str, tuple[Any, ...], Callable[[Any], tuple[Workload, int]]]


def _glom(levels_and_iters: tuple[int, int]) -> tuple[Workload, int]:
    levels, iters = levels_and_iters
    return replace(MEDIUM["glom"], config=replace(GLOM, dim=128, levels=levels), iters=iters), 0


def _hourglass(length: int) -> tuple[Workload, int]:
    config = replace(HOURGLASS, dim=256, heads=4, max_seq_len=length)
    return replace(MEDIUM["hourglass"], config=config, batch=1, length=length), 0


def _colt5(image_size: int) -> tuple[Workload, int]:
    return replace(MEDIUM["colt5"], config=replace(COLT5, image_size=image_size, dim=192), batch=1), 0


def _mammut(batch: int) -> tuple[Workload, int]:
    return replace(MEDIUM["mammut"], batch=batch), 0


def _scalable_vit(image_size: int) -> tuple[Workload, int]:
    return replace(MEDIUM["scalable_vit"], config=replace(SCALABLE_VIT, dim=32), batch=1), image_size


CURVES: dict[ModelName, Curve] = {
    "glom": ("levels, iterations", ((3, 3), (3, 6), (6, 6), (6, 12), (9, 18)), _glom),
    "hourglass": ("sequence length", (256, 512, 1024, 2048, 4096), _hourglass),
    "colt5": ("image side, px", (128, 256, 384, 512), _colt5),
    "mammut": ("batch", (1, 2, 4, 8), _mammut),
    "scalable_vit": ("image side, px", (128, 256, 384, 512), _scalable_vit),
}


def workload_at(model: ModelName, size: Size, point: int | None = None) -> tuple[Workload, int]:
    """A workload, and the height and width of its images if its config has none.

    Args:
      model, size: name the workload.
      point: index of a point on the model's scaling curve, which then takes the place of `size`.
    """
    if point is None:
        return WORKLOADS[model][size], IMAGE_SIZES[size]
    _, points, workload = CURVES[model]
    return workload(points[point])


def problem(model: ModelName, workload: Workload, image_size: int) -> Problem:
    """The workload in plain Python and NumPy."""
    return Problem(
        model=model,
        arguments=asdict(workload.config),
        encoder=None if workload.encoder is None else asdict(workload.encoder),
        iters=workload.iters,
        inputs=inputs(workload, image_size),
    )
