"""Qwen3 with grouped queries, loaded by the package itself: `CausalLM` of eqx-zoo against `Qwen3ForCausalLM`."""

from typing import Any

from benchmarks.ports.two_sides import IDS, VOCABULARY, checkpoint, saved


NAME = "eqx_zoo_qwen3"
INPUTS = {"input_ids": IDS}


def torch_side() -> dict[str, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=24,
    )
    return {
        "model": saved(Qwen3ForCausalLM(config), NAME),
        "inputs": INPUTS,
        "call": lambda model, inputs: {"logits": model(**inputs, use_cache=False).logits},
    }


def jax_side() -> dict[str, Any]:
    import jax
    from eqx_zoo import CausalLM

    return {
        "model": CausalLM.from_pretrained(checkpoint(NAME)),
        "inputs": INPUTS,
        "call": lambda model, inputs: {"logits": jax.vmap(lambda ids: model(ids)[0])(inputs["input_ids"])},
    }
