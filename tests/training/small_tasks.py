"""The five tasks on real data, so small that they compile quickly."""

from typing import Any

import jax
import numpy as np

import jaxmodels as jm
from jaxmodels.data import CaptionedImages, CaptionedSplits, LabelledImages, LabelledSplits, TextSplits, emoji
from jaxmodels.data.tokens import NUM_TOKENS
from jaxmodels.training.draws import Draws
from jaxmodels.training.task import Task
from jaxmodels.training.tasks.captioning import Captioning
from jaxmodels.training.tasks.classification import Classification
from jaxmodels.training.tasks.denoising import Denoising
from jaxmodels.training.tasks.language import LanguageModelling


def inputs_of(task: Task, indices: Any, seed: int = 0, *, first: int = 0) -> dict[str, np.ndarray]:
    """What the model reads of these training examples, at positions from `first` on."""
    indices = np.asarray(indices)
    batch = task.batch(indices, Draws(seed, first + np.arange(len(indices))))
    return jax.tree.map(np.array, jax.jit(task.inputs)(batch))


def make_images(start: int, count: int = 40) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Emoji of all groups at 16 pixels."""
    data = emoji("noto", skin_tones=False)
    chosen = np.linspace(start, len(data) - 1, count).astype(int)
    return data.images[chosen][:, ::4, ::4], data.labels[chosen] % 3, tuple(data.captions[i] for i in chosen)


def labelled(start: int) -> LabelledImages:
    images, labels, _ = make_images(start)
    return LabelledImages(images=images, labels=labels)


def captioned(start: int) -> CaptionedImages:
    images, _, captions = make_images(start)
    return CaptionedImages(images=images, captions=tuple(caption[:20] for caption in captions))


def label_splits() -> LabelledSplits:
    parts = {"train": labelled(0), "validation": labelled(3), "test": labelled(5)}
    return LabelledSplits(source="emoji", class_names=("a", "b", "c"), **parts)


def language() -> Task:
    text = jm.data.state_of_the_union("validation").text
    config = jm.HourglassTransformerLMConfig(
        num_tokens=256, dim=32, max_seq_len=24, depth=(1, 1, 1), shorten_factor=2, heads=2, dim_head=16
    )
    splits = TextSplits(source="text", train=text[:4000], validation=text[4000:4500], test=text[5000:5700])
    return LanguageModelling(config, splits)


def scalable_vit() -> Task:
    config = jm.ScalableViTConfig(
        num_classes=3,
        dim=8,
        depth=(1, 1),
        heads=(1, 2),
        reduction_factor=(2, 1),
        window_size=(2, None),
        iwsa_dim_key=8,
        iwsa_dim_value=8,
        ssa_dim_key=8,
        ssa_dim_value=8,
    )
    return Classification(config, label_splits(), shift=1, flip=True, label_smoothing=0.1)


def colt5() -> Task:
    config = jm.ConditionalRoutedViTConfig(
        image_size=16,
        patch_size=2,
        num_classes=3,
        dim=16,
        depth=1,
        attn_num_heavy_tokens_q=3,
        attn_num_heavy_tokens_kv=3,
        attn_heavy_dim_head=8,
        attn_heavy_heads=2,
        attn_light_dim_head=8,
        attn_light_heads=1,
        attn_light_window_size=4,
        ff_num_heavy_tokens=6,
        ff_heavy_mult=2,
        ff_light_mult=1,
    )
    return Classification(config, label_splits(), shift=1, flip=False, label_smoothing=0.0)


def glom() -> Task:
    config = jm.GlomConfig(dim=16, levels=3, image_size=16, patch_size=4)
    return Denoising(config, label_splits(), noise=0.5, shift=1)


def mammut() -> Task:
    config = jm.MaMMUTConfig(
        dim=32, num_tokens=NUM_TOKENS, depth=2, image_dim=16, num_img_queries=4, dim_head=8, heads=2
    )
    encoder = jm.SimpleViTConfig(
        image_size=16,
        patch_size=4,
        num_classes=3,
        dim=16,
        depth=1,
        heads=2,
        mlp_dim=16,
        dim_head=8,
        patch_dropout=0.0,
    )
    splits = CaptionedSplits(source="emoji", train=captioned(0), validation=captioned(3), test=captioned(5))
    return Captioning(config, encoder, splits, context=24, shift=1)


TASKS = {"hourglass": language, "scalable_vit": scalable_vit, "colt5": colt5, "glom": glom, "mammut": mammut}
