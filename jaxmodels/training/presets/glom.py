"""Presets of GLOM; the docstring of each says how to run it and what to expect."""

import tyro

from jaxmodels.models.glom import GlomConfig
from jaxmodels.training.experiment import GlomExperiment
from jaxmodels.training.optimizer import OptimizerConfig


def emoji() -> GlomExperiment:
    """Denoise emoji, then probe the top level; tested on a drawing style never seen.

        jaxmodels train glom-emoji --workdir runs/glom-emoji

    Two CPU cores, 7.0 minutes. Test: PSNR 17.52 dB (7×7 linear filter: 16.88 dB); linear probe, top-1: 36.6%
    (5 nearest neighbours on pixels: 44.2%).
    """
    return GlomExperiment(
        workdir=tyro.MISSING,
        steps=1500,
        batch_size=32,
        optim=OptimizerConfig(learning_rate=6e-3),
        model=GlomConfig(dim=64, levels=3, image_size=32, patch_size=4),
    )


def emoji_gpu() -> GlomExperiment:
    """The task of glom-emoji at 64 pixels with the published number of levels, for one GPU.

        jaxmodels train glom-emoji-gpu --workdir runs/glom-emoji-gpu

    It has not been run to its end: no time and no number are known.
    """
    return GlomExperiment(
        workdir=tyro.MISSING,
        steps=20_000,
        batch_size=64,
        image_size=64,
        precision="bfloat16",
        optim=OptimizerConfig(learning_rate=5e-4, warmup_steps=500, ema_decay=0.999),
        model=GlomConfig(dim=384, levels=6, image_size=64, patch_size=8),
    )


def readme() -> GlomExperiment:
    """The sizes of glom-pytorch's README, 224 pixels, for your own images.

    No schedule was published; the one here is our choice.

        jaxmodels train glom-readme --workdir runs/glom-readme --data PATH

    It has not been run to its end: no time and no number are known.
    """
    return GlomExperiment(
        workdir=tyro.MISSING,
        data=tyro.MISSING,
        steps=100_000,
        batch_size=32,
        image_size=224,
        shift=0,
        optim=OptimizerConfig(learning_rate=3e-4, warmup_steps=1000),
        model=GlomConfig(),
    )
