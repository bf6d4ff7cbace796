"""Gemma: `FlaxGemmaModel` against `GemmaModel`."""

from transformers import FlaxGemmaModel, GemmaConfig, GemmaModel

from benchmarks.ports.common import VOCABULARY, positions, token_ids, transformers_pair
from jaxmodels.compare import Pair


def pair() -> Pair:
    config = GemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=24,
    )

    def call_ours(model, inputs):
        ids = inputs["input_ids"]
        return model(ids, ids * 0 + 1, positions())

    return transformers_pair(
        "transformers_gemma",
        FlaxGemmaModel(config),
        GemmaModel(config),
        {"input_ids": token_ids()},
        call_ours,
        call_theirs=lambda model, inputs: model(**inputs, use_cache=False),
        outputs=("last_hidden_state",),
    )
