"""RoFormer: `FlaxRoFormerModel` against `RoFormerModel`."""

import numpy as np
from transformers import FlaxRoFormerModel, RoFormerConfig, RoFormerModel

from benchmarks.ports.common import SHAPE, VOCABULARY, padding_mask, token_ids, transformers_pair
from jaxmodels.compare import Pair


def pair() -> Pair:
    config = RoFormerConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
    )
    inputs = {
        "input_ids": token_ids(),
        "attention_mask": padding_mask(),
        "token_type_ids": np.random.default_rng(1).integers(0, 2, SHAPE),
    }
    return transformers_pair(
        "transformers_roformer",
        FlaxRoFormerModel(config),
        RoFormerModel(config),
        inputs,
        lambda model, inputs: model(*inputs.values(), None),
        outputs=("last_hidden_state",),
        named=True,
        only_theirs=("encoder.embed_positions",),  # sinusoids, which JAX computes
    )
