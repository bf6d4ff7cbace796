"""BERT, loaded by the package itself from a checkpoint: `Encoder` of eqx-zoo against `BertModel`."""

from typing import Any

from benchmarks.ports.two_sides import IDS, VOCABULARY, checkpoint, saved


NAME = "eqx_zoo_bert"
INPUTS = {"input_ids": IDS}


def torch_side() -> dict[str, Any]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
    )
    return {
        "model": saved(BertModel(config), NAME),
        "inputs": INPUTS,
        "call": lambda model, inputs: {"hidden": model(**inputs).last_hidden_state},
    }


def jax_side() -> dict[str, Any]:
    import jax
    from eqx_zoo import Encoder

    return {
        "model": Encoder.from_pretrained(checkpoint(NAME)),
        "inputs": INPUTS,
        "call": lambda model, inputs: {"hidden": jax.vmap(model)(inputs["input_ids"])},
    }
