"""BERT: `FlaxBertModel` against `BertModel`."""

import numpy as np
from transformers import BertConfig, BertModel, FlaxBertModel

from benchmarks.ports.common import SHAPE, VOCABULARY, padding_mask, positions, token_ids, transformers_pair
from jaxmodels.compare import Pair


def pair() -> Pair:
    config = BertConfig(
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

    def call_ours(model, inputs):
        return model(*inputs.values(), positions(), None)

    return transformers_pair(
        "transformers_bert",
        FlaxBertModel(config),
        BertModel(config),
        inputs,
        call_ours,
        outputs=("last_hidden_state", "pooler_output"),
    )
