"""GPT-2: `FlaxGPT2Model` against `GPT2Model`."""

from transformers import FlaxGPT2Model, GPT2Config, GPT2Model

from benchmarks.ports.common import VOCABULARY, positions, token_ids, transformers_pair
from jaxmodels.compare import Pair


def pair() -> Pair:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=24)
    config.bos_token_id = config.eos_token_id = 0

    def call_ours(model, inputs):
        ids = inputs["input_ids"]
        return model(ids, ids * 0 + 1, positions())

    return transformers_pair(
        "transformers_gpt2",
        FlaxGPT2Model(config),
        GPT2Model(config),
        {"input_ids": token_ids()},
        call_ours,
        call_theirs=lambda model, inputs: model(**inputs, use_cache=False),
        outputs=("last_hidden_state",),
    )
