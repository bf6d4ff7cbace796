"""Presets of CoLT5's conditionally routed ViT; the docstring of each says how to run it and what to expect."""

import tyro

from jaxmodels.models.colt5 import ConditionalRoutedViTConfig
from jaxmodels.training.experiment import CoLT5Experiment
from jaxmodels.training.optimizer import OptimizerConfig


def emoji() -> CoLT5Experiment:
    """Classify emoji into groups; tested on a drawing style never seen.

        jaxmodels train colt5-vit-emoji --workdir runs/colt5-vit-emoji

    Two CPU cores, 4.6 minutes. Test: top-1 50.1% (5 nearest neighbours on pixels: 44.2%), top-5 91.5%.
    With --protocol within-style, tested on concepts never seen: 4.0 minutes, top-1 57.1% (5 nearest neighbours: 58.5%).
    """
    return CoLT5Experiment(
        workdir=tyro.MISSING,
        steps=2000,
        batch_size=64,
        shift=3,
        flip=True,
        zoom=0.2,
        recolor=0.3,
        optim=OptimizerConfig(learning_rate=1.5e-3, weight_decay=0.1),
        model=ConditionalRoutedViTConfig(
            image_size=32,
            patch_size=4,
            num_classes=9,
            dim=96,
            depth=3,
            attn_num_heavy_tokens_q=4,
            attn_num_heavy_tokens_kv=6,
            attn_heavy_dim_head=24,
            attn_heavy_heads=4,
            attn_light_dim_head=16,
            attn_light_heads=4,
            attn_light_window_size=4,
            ff_num_heavy_tokens=16,
            ff_heavy_mult=4,
            ff_light_mult=1,
        ),
    )


def emoji_gpu() -> CoLT5Experiment:
    """The task of colt5-vit-emoji at 64 pixels, for one GPU.

        jaxmodels train colt5-vit-emoji-gpu --workdir runs/colt5-vit-emoji-gpu

    It has not been run to its end: no time and no number are known.
    """
    return CoLT5Experiment(
        workdir=tyro.MISSING,
        steps=20_000,
        batch_size=256,
        image_size=64,
        shift=4,
        precision="bfloat16",
        optim=OptimizerConfig(learning_rate=5e-4, warmup_steps=500, weight_decay=0.1, ema_decay=0.999),
        model=ConditionalRoutedViTConfig(
            image_size=64,
            patch_size=4,
            num_classes=9,
            dim=256,
            depth=6,
            attn_num_heavy_tokens_q=16,
            attn_num_heavy_tokens_kv=16,
            attn_heavy_dim_head=64,
            attn_heavy_heads=4,
            attn_light_dim_head=32,
            attn_light_heads=4,
            attn_light_window_size=8,
            ff_num_heavy_tokens=64,
            ff_heavy_mult=4,
            ff_light_mult=1,
        ),
    )


def readme() -> CoLT5Experiment:
    """The ViT of CoLT5-attention's README, for your own images; no paper trains it.

        jaxmodels train colt5-vit-readme --workdir runs/colt5-vit-readme --data PATH

    It has not been run to its end: no time and no number are known.
    """
    return CoLT5Experiment(
        workdir=tyro.MISSING,
        data=tyro.MISSING,
        steps=100_000,
        batch_size=256,
        image_size=256,
        shift=16,
        flip=True,
        precision="bfloat16",
        optim=OptimizerConfig(learning_rate=5e-4, warmup_steps=5000, weight_decay=0.1),
        model=ConditionalRoutedViTConfig(
            image_size=256,
            patch_size=32,
            num_classes=1000,
            dim=1024,
            depth=6,
            attn_num_heavy_tokens_q=16,
            attn_num_heavy_tokens_kv=16,
            attn_heavy_dim_head=64,
            attn_heavy_heads=8,
            attn_light_dim_head=32,
            attn_light_heads=4,
            attn_light_window_size=4,
            ff_num_heavy_tokens=32,
            ff_heavy_mult=4,
            ff_light_mult=2,
        ),
    )
