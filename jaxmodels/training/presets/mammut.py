"""Presets of MaMMUT; the docstring of each says how to run it and what to expect."""

import tyro

from jaxmodels.data.tokens import NUM_TOKENS
from jaxmodels.models.mammut import MaMMUTConfig
from jaxmodels.models.simple_vit import SimpleViTConfig
from jaxmodels.training.experiment import MaMMUTExperiment
from jaxmodels.training.optimizer import OptimizerConfig


def emoji() -> MaMMUTExperiment:
    """Caption emoji, and find the image for a caption and the caption for an image; tested on a style never seen.

        jaxmodels train mammut-emoji --workdir runs/mammut-emoji

    Two CPU cores, 5.9 minutes. Test: recall at 5 from image to text 4.6% (chance: 0.3%; nearest training image: 34.3%),
    from text to image 4.2%; captions 1.032 bits per byte (counts of bytes after the last 6: 1.067).
    """
    return MaMMUTExperiment(
        workdir=tyro.MISSING,
        steps=2000,
        batch_size=64,
        context=48,
        optim=OptimizerConfig(learning_rate=2e-3, weight_decay=0.1),
        model=MaMMUTConfig(
            dim=96,
            num_tokens=NUM_TOKENS,
            depth=2,
            dim_latents=128,
            image_dim=128,
            num_img_queries=8,
            dim_head=16,
            heads=8,
            ff_mult=2,
        ),
        encoder=SimpleViTConfig(
            image_size=32,
            patch_size=8,
            num_classes=9,
            dim=128,
            depth=3,
            heads=4,
            mlp_dim=256,
            dim_head=32,
            patch_dropout=0.0,
        ),
    )


def emoji_gpu() -> MaMMUTExperiment:
    """The task of mammut-emoji at 64 pixels, for one GPU.

        jaxmodels train mammut-emoji-gpu --workdir runs/mammut-emoji-gpu

    It has not been run to its end: no time and no number are known.
    """
    return MaMMUTExperiment(
        workdir=tyro.MISSING,
        steps=20_000,
        batch_size=256,
        image_size=64,
        shift=4,
        precision="bfloat16",
        optim=OptimizerConfig(learning_rate=5e-4, warmup_steps=500, weight_decay=0.1, ema_decay=0.999),
        model=MaMMUTConfig(
            dim=384, num_tokens=NUM_TOKENS, depth=6, image_dim=384, num_img_queries=64, dim_head=64, heads=6
        ),
        encoder=SimpleViTConfig(
            image_size=64,
            patch_size=8,
            num_classes=9,
            dim=384,
            depth=8,
            heads=6,
            mlp_dim=1536,
            patch_dropout=0.5,
        ),
    )


def readme() -> MaMMUTExperiment:
    """The sizes of MaMMUT-pytorch's README with bytes as tokens, for your own images with captions.

        jaxmodels train mammut-readme --workdir runs/mammut-readme --data PATH

    It has not been run to its end: no time and no number are known.
    """
    return MaMMUTExperiment(
        workdir=tyro.MISSING,
        data=tyro.MISSING,
        steps=100_000,
        batch_size=256,
        image_size=256,
        context=256,
        shift=16,
        precision="bfloat16",
        optim=OptimizerConfig(learning_rate=5e-4, warmup_steps=5000, weight_decay=0.1),
        model=MaMMUTConfig(dim=512, num_tokens=NUM_TOKENS, depth=6, image_dim=1024, cross_attend_every=2),
        encoder=SimpleViTConfig(
            image_size=256,
            patch_size=32,
            num_classes=1000,
            dim=1024,
            depth=6,
            heads=16,
            mlp_dim=2048,
            patch_dropout=0.5,
        ),
    )


def paper() -> MaMMUTExperiment:
    """MaMMUT's small decoder on a ViT-H/14, with bytes as tokens, for many accelerators.

    The decoder has 6 layers of width 512, cross-attention in every second one, and an MLP of width 2048. Sizes are
    taken from public re-implementations and were not checked against the paper.

        jaxmodels train mammut-paper --workdir runs/mammut-paper --data PATH

    It has not been run to its end: no time and no number are known.
    """
    return MaMMUTExperiment(
        workdir=tyro.MISSING,
        data=tyro.MISSING,
        steps=500_000,
        batch_size=4096,
        image_size=224,
        context=256,
        shift=16,
        precision="bfloat16",
        remat=True,
        optim=OptimizerConfig(learning_rate=1e-3, warmup_steps=10_000, weight_decay=0.01),
        model=MaMMUTConfig(
            dim=512,
            num_tokens=NUM_TOKENS,
            depth=6,
            image_dim=1280,
            cross_attend_every=2,
            dim_head=64,
            heads=8,
        ),
        encoder=SimpleViTConfig(
            image_size=224,
            patch_size=14,
            num_classes=1000,
            dim=1280,
            depth=32,
            heads=16,
            mlp_dim=5120,
            dim_head=80,
            patch_dropout=0.5,
        ),
    )
