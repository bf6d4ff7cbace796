"""Hourglass Transformer, which predicts the next byte of prose."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from benchmarks.workload import BenchmarkPair, Curve, Inputs, Size, Workload


MEDIUM = {
    "num_tokens": 256,
    "dim": 384,
    "max_seq_len": 512,
    "depth": (2, 4, 2),
    "shorten_factor": 2,
    "heads": 6,
}


def at(length: int) -> Workload:
    """One text of this length."""
    return Workload(
        arguments=MEDIUM | {"dim": 256, "heads": 4, "max_seq_len": length}, batch=1, length=length
    )


class HourglassPair(BenchmarkPair):
    name = "hourglass"
    sizes: ClassVar[Mapping[Size, Workload]] = {
        "small": Workload(
            arguments=MEDIUM
            | {"dim": 128, "max_seq_len": 256, "depth": (1, 2, 1), "heads": 4, "dim_head": 32},
            batch=4,
            length=256,
        ),
        "medium": Workload(arguments=MEDIUM, batch=2, length=512),
        "gpu": Workload(
            arguments=MEDIUM | {"dim": 1024, "max_seq_len": 2048, "depth": (4, 8, 4), "heads": 16},
            batch=16,
            length=2048,
        ),
    }
    curve = Curve("sequence length", (256, 512, 1024, 2048, 4096), at)

    def inputs(self, workload: Workload) -> dict[str, np.ndarray]:
        from jaxmodels.data import state_of_the_union

        number = workload.batch * (workload.length + 1)
        text = np.frombuffer(state_of_the_union("test").text, np.uint8)[:number]
        return {"tokens": text.reshape(workload.batch, -1).astype(np.int64)}

    def config(self, workload: Workload) -> Any:
        from jaxmodels.models.hourglass_config import HourglassTransformerLMConfig

        return HourglassTransformerLMConfig(**workload.arguments)

    def ours(self, workload: Workload, **layer: Any) -> Any:
        from jaxmodels.models.hourglass import HourglassTransformerLM

        return HourglassTransformerLM(self.config(workload), **layer)

    def theirs(self, workload: Workload) -> Any:
        import torch_reference

        return torch_reference.HourglassTransformerLM(**workload.arguments)

    def call(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        return model(inputs["tokens"][:, :-1])

    def loss_ours(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        from jaxmodels.generation import next_token_loss

        return next_token_loss(model, inputs["tokens"], pad_value=-1)

    def loss_theirs(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        from torch_reference.losses import mean_cross_entropy

        return mean_cross_entropy(model(inputs["tokens"][:, :-1]), inputs["tokens"][:, 1:])


PAIR = HourglassPair()
pair, jax_side, torch_side = PAIR.pair, PAIR.jax_side, PAIR.torch_side
