"""Captioning and retrieval: MaMMUT with a SimpleViT that encodes the pictures.

Texts are bytes (`jaxmodels.data.tokens`). Byte ids have no end of text: what follows a caption is padding,
which the loss leaves out, so that a decoder would never learn to stop. Here a line break ends every caption –
no caption contains one, since white space is reduced to single spaces – and is predicted like any other byte.

Whoever ranks captions for a picture finds a right one at once if it is the caption of that picture or of
another with the same pixels; likewise with pictures for a caption, and for captions that are equal.

Shapes: b batch, n = context, v vocabulary, z latent width, i pictures, j captions.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from jaxmodels.data.splits import CaptionedImages, CaptionedSplits
from jaxmodels.data.tokens import BOS_ID, NUM_TOKENS, PAD_ID, decode, encode
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig, contrastive_loss
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig
from jaxmodels.nn import at_least_float32, require_divisible, require_height_width, require_integer
from jaxmodels.training.byte_baselines import ByteCounts
from jaxmodels.training.figures import caption_figure, retrieval_figure
from jaxmodels.training.pictures import in_batches, moved, scaled
from jaxmodels.training.task import Batch, Call, Metric, Outputs, Sample, Split
