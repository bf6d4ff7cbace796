"""Presets of the Hourglass language model; the docstring of each says how to run it and what to expect."""

import tyro

from jaxmodels.models.hourglass_config import HourglassTransformerLMConfig
from jaxmodels.training.experiment import HourglassExperiment
from jaxmodels.training.optimizer import OptimizerConfig


def sotu() -> HourglassExperiment:
    """Predict the next byte of presidents' addresses; tested on the years 2011-2021.

        jaxmodels train hourglass-sotu --workdir runs/hourglass-sotu

    Two CPU cores, 6.5 minutes. Test: 2.110 bits per byte (gzip -9: 2.870; xz -9e after the training text: 2.068).
    """
    return HourglassExperiment(
        workdir=tyro.MISSING,
        steps=18_000,
        batch_size=4,
        first_year=1945,
        optim=OptimizerConfig(learning_rate=3e-3, warmup_steps=100),
        model=HourglassTransformerLMConfig(
            num_tokens=256,
            dim=128,
            max_seq_len=128,
            depth=(1, 3, 1),
            shorten_factor=3,
            heads=4,
            dim_head=32,
            attn_resampling=False,
        ),
    )


def sotu_gpu() -> HourglassExperiment:
    """The task of hourglass-sotu with 1024 bytes of context and all years since 1790, for one GPU.

        jaxmodels train hourglass-sotu-gpu --workdir runs/hourglass-sotu-gpu

    It has not been run to its end: no time and no number are known.
    """
    return HourglassExperiment(
        workdir=tyro.MISSING,
        steps=20_000,
        batch_size=32,
        precision="bfloat16",
        optim=OptimizerConfig(learning_rate=6e-4, warmup_steps=1000, weight_decay=0.1),
        model=HourglassTransformerLMConfig(
            num_tokens=256,
            dim=384,
            max_seq_len=1024,
            depth=(2, 8, 2),
            shorten_factor=2,
            heads=6,
            dim_head=64,
        ),
    )


def enwik8() -> HourglassExperiment:
    """The enwik8 configuration of the paper: 5@1 24@3 5@1, width 512; for --data enwik8.

    The paper reports 0.98 bits per byte. Settings are those of trax's hourglass_enwik8.gin. The package has no
    dropout (0.2 there) and no relative attention, and it resamples with attention in both directions.

        jaxmodels train hourglass-enwik8 --workdir runs/hourglass-enwik8 --data PATH

    It has not been run to its end: no time and no number are known.
    """
    return HourglassExperiment(
        workdir=tyro.MISSING,
        data=tyro.MISSING,
        steps=350_000,
        batch_size=8,
        optim=OptimizerConfig(
            learning_rate=4.1e-4, warmup_steps=4000, weight_decay=0.0, clip_norm=0.0, b2=0.98, eps=1e-9
        ),
        model=HourglassTransformerLMConfig(
            num_tokens=256, dim=512, max_seq_len=2048, depth=(5, 24, 5), shorten_factor=3
        ),
    )


def imagenet32() -> HourglassExperiment:
    """The ImageNet32 configuration of the paper: 3@1 24@3 3@1, width 512, linear pooling.

    For --data with images as bytes. Settings are those of trax's hourglass_imagenet32.gin, whose schedule decays
    as 1/√step; here it is half a cosine.

        jaxmodels train hourglass-imagenet32 --workdir runs/hourglass-imagenet32 --data PATH

    It has not been run to its end: no time and no number are known.
    """
    return HourglassExperiment(
        workdir=tyro.MISSING,
        data=tyro.MISSING,
        steps=400_000,
        batch_size=8,
        optim=OptimizerConfig(
            learning_rate=4.9e-4, warmup_steps=8000, weight_decay=0.0, clip_norm=0.0, b2=0.98, eps=1e-9
        ),
        model=HourglassTransformerLMConfig(
            num_tokens=256,
            dim=512,
            max_seq_len=3072,
            depth=(3, 24, 3),
            shorten_factor=3,
            updown_sample_type="linear",
        ),
    )
