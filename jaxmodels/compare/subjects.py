"""The five models as pairs: shared weights on both sides, real images, captions and prose for both."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import lru_cache
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_reference
from jaxmodels import losses
from jaxmodels.compare.pair import Inputs, Pair
from jaxmodels.convert.core import load_state_dict, to_state_dict
from jaxmodels.convert.tables import table_of
from jaxmodels.convert.torch_io import to_torch
from jaxmodels.data import EmojiSet, emoji, state_of_the_union
from jaxmodels.data.tokens import NUM_TOKENS, PAD_ID, encode
from jaxmodels.models import MODEL_NAMES, ModelName
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig
from jaxmodels.models.glom import Glom, GlomConfig
from jaxmodels.models.hourglass import HourglassTransformerLM
from jaxmodels.models.hourglass_config import HourglassTransformerLMConfig
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig
from torch_reference import losses as torch_losses
from torch_reference.simple_vit import TokenExtractor


# Added to fresh weights: scales of one and biases of zero would hide names that are exchanged.
WEIGHT_NOISE = 0.05
# From one batch of emoji to the next. It has no factor in common with their number, so training sees all of them.
BATCH_STRIDE = 229

DEFAULT_CONFIGS = {
    "glom": GlomConfig(dim=64, levels=4, image_size=64, patch_size=8),
    "hourglass": HourglassTransformerLMConfig(
        num_tokens=256,
        dim=64,
        max_seq_len=256,
        depth=(1, (1, 1, 1), 1),
        shorten_factor=(2, 3),
        heads=4,
        dim_head=16,
    ),
    "colt5": ConditionalRoutedViTConfig(
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
        attn_num_routed_kv=2,
    ),
    "mammut": MaMMUTConfig(
        dim=64, num_tokens=NUM_TOKENS, depth=2, image_dim=48, num_img_queries=16, dim_head=16, heads=4
    ),
    "scalable_vit": ScalableViTConfig(
        num_classes=9,
        dim=16,
        depth=(1, 1, 1),
        heads=(1, 2, 4),
        reduction_factor=(4, 2, 1),
        window_size=(8, 4, None),
        iwsa_dim_key=16,
        iwsa_dim_value=16,
        ssa_dim_key=16,
        ssa_dim_value=16,
    ),
}
DEFAULT_ENCODER = SimpleViTConfig(
    image_size=64, patch_size=16, num_classes=9, dim=48, depth=1, heads=3, mlp_dim=96, dim_head=16
)


def default_model(name: ModelName, seed: int) -> nnx.Module:
    """The model of a comparison without a checkpoint: PyTorch's fresh weights, with noise added."""
    config = DEFAULT_CONFIGS[name]
    ours = BUILDERS[name](config)
    torch.manual_seed(seed)
    theirs = reference_of(ours)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(WEIGHT_NOISE * torch.randn_like(parameter))
    return load_state_dict(ours, theirs.state_dict())


BUILDERS: dict[str, Callable[[Any], nnx.Module]] = {
    "glom": lambda config: _skeleton(lambda rngs: Glom(config, rngs=rngs)),
    "hourglass": lambda config: _skeleton(lambda rngs: HourglassTransformerLM(config, rngs=rngs)),
    "colt5": lambda config: _skeleton(lambda rngs: ConditionalRoutedViT(config, rngs=rngs)),
    "mammut": lambda config: _skeleton(
        lambda rngs: MaMMUT(config, img_encoder=SimpleViT(DEFAULT_ENCODER, rngs=rngs), rngs=rngs)
    ),
    "scalable_vit": lambda config: _skeleton(lambda rngs: ScalableViT(config, rngs=rngs)),
}


def pair_of(model: nnx.Module, *, batch: int = 4) -> Pair:
    """The pair of one of the five models: its PyTorch twin with the same weights, and real inputs for both, different
    at every optimiser step.

    Raises:
      ValueError: another model, or one whose inputs cannot be made from the embedded data.
    """
    theirs = reference_of(model)
    theirs.load_state_dict({key: to_torch(array) for key, array in to_state_dict(model).items()})
    match model:
        case Glom():
            parts = _glom(model, batch)
        case HourglassTransformerLM():
            parts = _hourglass(model, batch)
        case ConditionalRoutedViT():
            parts = _classifier(model, batch, model.config.image_size) | _routing(model)
        case ScalableViT():
            parts = _classifier(model, batch, _scalable_size(model.config))
        case MaMMUT():
            parts = _mammut(model, batch)
        case _:
            name_of(model)
    return Pair(ours=model, theirs=theirs, table=tuple(table_of(model)), inputs=parts["batches"](0), **parts)


def name_of(model: nnx.Module) -> ModelName:
    """The command line's name of a model; ValueError for one that it cannot compare."""
    names: dict[type, ModelName] = {
        Glom: "glom",
        HourglassTransformerLM: "hourglass",
        ConditionalRoutedViT: "colt5",
        MaMMUT: "mammut",
        ScalableViT: "scalable_vit",
    }
    if type(model) not in names:
        raise ValueError(f"model must be one of {', '.join(MODEL_NAMES)}; got a {type(model).__name__}")
    return names[type(model)]


def reference_of(model: nnx.Module) -> torch.nn.Module:
    """A fresh PyTorch model of the same configuration."""
    match model:
        case MaMMUT():
            encoder: Any = model.img_encoder
            wrapped = None
            if isinstance(encoder, SimpleViT):
                wrapped = TokenExtractor(torch_reference.SimpleViT(**asdict(encoder.config)))
            elif encoder is not None:
                raise ValueError(
                    f"img_encoder must be a SimpleViT or None to be compared; got a {type(encoder).__name__}"
                )
            return torch_reference.MaMMUT(img_encoder=wrapped, **asdict(model.config))
        case _:
            config: Any = getattr(model, "config")  # noqa: B009 - each of the five has one
            return getattr(torch_reference, type(model).__name__)(**asdict(config))


def _skeleton(build: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """A model of shapes without arrays; `load_state_dict` fills it."""
    return nnx.eval_shape(lambda: build(nnx.Rngs(0)))


def _glom(model: Glom, batch: int) -> dict[str, Any]:
    """Denoising as in the package's README: reconstruct the clean image from the top level."""
    config = model.config
    decoder = np.random.default_rng(1).normal(size=(config.dim, 3 * config.patch_size**2))
    decoder /= config.dim**0.5
    iters = losses.denoising_iters(config.levels)
    sizes = {"patch_size": config.patch_size, "height": config.image_size}

    def batches(step: int) -> Inputs:
        clean = emoji_images(_emoji_indices(batch, step), config.image_size, channels=3)
        noise = np.random.default_rng(step).normal(size=clean.shape).astype(np.float32)
        return {"img": clean + noise, "clean": clean}

    def call_ours(model, inputs):
        layerwise = jax.config.jax_disable_jit  # ty: ignore[missing-attribute]
        with _steps_in_python() if layerwise else nullcontext():
            return model(inputs["images"])

    def loss_theirs(model, inputs):
        top = model(inputs["img"], return_all=True)[iters, :, :, -1]
        image = torch_losses.image_from_patches(top @ torch.from_numpy(decoder).to(top), **sizes)
        return torch_losses.squared_error(image, inputs["clean"]).mean()

    def loss_ours(model, inputs):
        top = model(inputs["images"], return_all=True)[iters, :, :, -1]
        image = losses.image_from_patches(top @ jnp.asarray(decoder, top.dtype), **sizes)
        return losses.squared_error(image, inputs["clean"]).mean()

    return {
        "name": "glom",
        "batches": batches,
        "to_ours": lambda x: {"images": _channels_last(x["img"]), "clean": _channels_last(x["clean"])},
        "call_theirs": lambda model, x: model(x["img"]),
        "call_ours": call_ours,
        "loss_theirs": loss_theirs,
        "loss_ours": loss_ours,
    }


@contextmanager
def _steps_in_python() -> Generator[None]:
    """Runs GLOM's steps as a Python loop of whole steps: captures see neither into a scan nor into a checkpoint."""

    def run_steps(self, state, tokens, positions, *, iters, return_all):
        states = [state]
        for _ in range(iters):
            bottom_up = self.bottom_up(jnp.concatenate([tokens, states[-1][:-1]]))
            states.append(self.update(states[-1], bottom_up, positions))
        return states[-1], jnp.stack(states[1:]) if return_all else None

    with mock.patch.object(Glom, "run_steps", run_steps):
        yield


def _hourglass(model: HourglassTransformerLM, batch: int) -> dict[str, Any]:
    """Next-byte prediction on addresses of held-out years; the length needs padding."""
    config = model.config
    length = min(config.max_seq_len, 250)
    text = np.frombuffer(state_of_the_union("test").text, np.uint8)

    def batches(step: int) -> Inputs:
        size = batch * (length + 1)
        start = step * size % (len(text) - size + 1)
        ids = text[start : start + size].reshape(batch, length + 1).astype(np.int64) % config.num_tokens
        return {"x": ids[:, :-1], "labels": ids[:, 1:]}

    def loss_theirs(model, inputs):
        return torch_losses.mean_cross_entropy(model(inputs["x"]), inputs["labels"])

    def loss_ours(model, inputs):
        return losses.mean_cross_entropy(model(inputs["x"]), inputs["labels"])

    return {
        "name": "hourglass",
        "batches": batches,
        "call_theirs": lambda model, x: model(x["x"]),
        "call_ours": lambda model, x: model(x["x"]),
        "loss_theirs": loss_theirs,
        "loss_ours": loss_ours,
    }


def _classifier(
    model: ConditionalRoutedViT | ScalableViT, batch: int, size: int | tuple[int, int]
) -> dict[str, Any]:
    """Cross-entropy against the emoji's groups."""

    def batches(step: int) -> Inputs:
        indices = _emoji_indices(batch, step)
        labels = _emoji().labels[indices].astype(np.int64) % model.config.num_classes
        return {"img": emoji_images(indices, size, channels=model.config.channels), "labels": labels}

    return {
        "name": "colt5" if isinstance(model, ConditionalRoutedViT) else "scalable_vit",
        "batches": batches,
        "to_ours": lambda x: {"images": _channels_last(x["img"]), "labels": x["labels"]},
        "call_theirs": lambda model, x, **routing: model(x["img"], **routing),
        "call_ours": lambda model, x, **routing: model(x["images"], **routing),
        "loss_theirs": lambda model, x, **routing: torch_losses.mean_cross_entropy(
            model(x["img"], **routing), x["labels"]
        ),
        "loss_ours": lambda model, x, **routing: losses.mean_cross_entropy(
            model(x["images"], **routing), x["labels"]
        ),
    }


def _routing(model: ConditionalRoutedViT) -> dict[str, Any]:
    names = [
        f"transformer.layers.{i}.{name}"
        for i in range(model.config.depth)
        for name in ("0.q_router", "0.kv_router", "1.router")
    ]
    return {
        "routers": tuple(names),
        "routing_theirs": lambda model, x: model.routing(x["img"]),
        "routing_ours": lambda model, x: model.routing(x["images"]),
    }


def _scalable_size(config: ScalableViTConfig) -> int:
    """64 pixels, or the first multiple that every window divides."""
    windows = (
        config.window_size
        if isinstance(config.window_size, tuple)
        else (config.window_size,) * len(config.depth)
    )
    for size in range(64, 1025, 32):
        maps = [-(-size // (4 * 2**stage)) for stage in range(len(config.depth))]
        if all(window is None or side % window == 0 for side, window in zip(maps, windows, strict=True)):
            return size
    raise ValueError(f"no image side up to 1024 has maps that window_size={config.window_size} divides")


def _mammut(model: MaMMUT, batch: int) -> dict[str, Any]:
    """Captioning and contrastive loss on emoji with their captions; logits and both embeddings as outputs."""
    config = model.config
    captions = _emoji().captions
    length = 1 + max(
        len(caption.encode()) for caption in captions
    )  # one for all steps, which share a program
    encoder: Any = model.img_encoder

    def batches(step: int) -> Inputs:
        indices = _emoji_indices(batch, step)
        text = encode([captions[i] for i in indices], length).astype(np.int64)
        text = np.where(text == PAD_ID, config.pad_id, text % config.num_tokens)
        if encoder is not None:
            size, channels = encoder.config.image_size, encoder.config.channels
            return {"text": text, "images": emoji_images(indices, size, channels=channels)}
        rows = emoji_images(indices, 16, channels=3).reshape(batch, 16, -1)  # 16 tokens per image
        width = config.dim if config.image_dim is None else config.image_dim
        return {"text": text, "image_tokens": np.resize(rows, (batch, 16, width))}

    def call_theirs(model, inputs):
        logits = model(**inputs)
        return logits, *model(**inputs, return_embeddings=True)

    def call_ours(model, inputs):
        return model(**inputs), *model.embeddings(**inputs)

    return {
        "name": "mammut",
        "batches": batches,
        "to_ours": lambda x: {k: _channels_last(v) if k == "images" else v for k, v in x.items()},
        "call_theirs": call_theirs,
        "call_ours": call_ours,
        "loss_theirs": lambda model, x: model(**x, return_loss=True),
        "loss_ours": lambda model, x: model.loss(**x).total,
    }


def emoji_images(indices: np.ndarray, size: int | tuple[int, int], *, channels: int) -> np.ndarray:
    """Emoji as float32 (batch, channels, height, width), zero mean and unit deviation, resized by pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = np.arange(height) * 64 // height, np.arange(width) * 64 // width
    images = _emoji().images[indices][:, rows][:, :, columns].astype(np.float32) / 255
    if channels != 3:
        images = np.repeat(images.mean(axis=-1, keepdims=True), channels, axis=-1)
    images = (images - images.mean()) / images.std()
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _emoji_indices(batch: int, step: int) -> np.ndarray:
    """The indices of `batch` emoji spread over all groups, different at every step."""
    first = np.linspace(0, len(_emoji()) - 1, batch).astype(int)
    return (first + BATCH_STRIDE * step) % len(_emoji())


@lru_cache(maxsize=1)
def _emoji() -> EmojiSet:
    return emoji("openmoji", skin_tones=False)


def _channels_last(images: Any) -> Any:
    return images.transpose(0, 2, 3, 1)
