"""Presets of ScalableViT; the docstring of each says how to run it and what to expect."""

import tyro

from jaxmodels.models.scalable_vit import ScalableViTConfig
from jaxmodels.training.experiment import ScalableViTExperiment
from jaxmodels.training.optimizer import OptimizerConfig


def emoji() -> ScalableViTExperiment:
    """Classify emoji into groups; tested on a drawing style never seen.

        jaxmodels train scalable-vit-emoji --workdir runs/scalable-vit-emoji

    Two CPU cores, 2.0 minutes. Test: top-1 55.8% (5 nearest neighbours on pixels: 44.2%), top-5 92.0%.
    With --protocol within-style, tested on concepts never seen: 2.3 minutes, top-1 60.9% (5 nearest neighbours: 58.5%).
    """
    return ScalableViTExperiment(
        workdir=tyro.MISSING,
        steps=1500,
        batch_size=64,
        shift=3,
        flip=True,
        zoom=0.2,
        recolor=0.3,
        optim=OptimizerConfig(learning_rate=2e-3, weight_decay=0.1),
        model=ScalableViTConfig(
            num_classes=9,
            dim=32,
            depth=(1, 1, 1),
            heads=(1, 2, 4),
            reduction_factor=(4, 2, 1),
            window_size=(4, 4, None),
            iwsa_dim_key=16,
            iwsa_dim_value=16,
            ssa_dim_key=16,
            ssa_dim_value=16,
        ),
    )


def emoji_gpu() -> ScalableViTExperiment:
    """The task of scalable-vit-emoji at 64 pixels, for one GPU.

        jaxmodels train scalable-vit-emoji-gpu --workdir runs/scalable-vit-emoji-gpu

    It has not been run to its end: no time and no number are known.
    """
    return ScalableViTExperiment(
        workdir=tyro.MISSING,
        steps=20_000,
        batch_size=256,
        image_size=64,
        shift=4,
        precision="bfloat16",
        optim=OptimizerConfig(learning_rate=1e-3, warmup_steps=500, weight_decay=0.1, ema_decay=0.999),
        model=ScalableViTConfig(
            num_classes=9,
            dim=64,
            depth=(2, 2, 6),
            heads=(2, 4, 8),
            reduction_factor=(4, 2, 1),
            window_size=(8, 8, None),
            dropout=0.1,
        ),
    )


def readme() -> ScalableViTExperiment:
    """The sizes of vit-pytorch's README, for your own images.

    Not the authors' architecture: theirs has one attention and one feed-forward per block.

        jaxmodels train scalable-vit-readme --workdir runs/scalable-vit-readme --data PATH

    It has not been run to its end: no time and no number are known.
    """
    return ScalableViTExperiment(
        workdir=tyro.MISSING,
        data=tyro.MISSING,
        steps=300_000,
        batch_size=256,
        image_size=256,
        shift=16,
        flip=True,
        label_smoothing=0.1,
        precision="bfloat16",
        optim=OptimizerConfig(learning_rate=1e-3, warmup_steps=5000, weight_decay=0.05),
        model=ScalableViTConfig(
            num_classes=1000,
            dim=64,
            heads=(2, 4, 8, 16),
            depth=(2, 2, 20, 2),
            ssa_dim_key=(40, 40, 40, 32),
            reduction_factor=(8, 4, 2, 1),
            window_size=(64, 32, None, None),
            dropout=0.1,
        ),
    )
