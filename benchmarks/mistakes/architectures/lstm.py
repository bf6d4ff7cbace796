"""LSTM: one recurrent layer, a gated unit, a standard deviation, a normalised vector, log-probabilities."""

import jax
import jax.numpy as jnp
import torch
from torch.nn import functional as F

from benchmarks.mistakes.architectures.common import labelled, labels_for, parameter, random_weights, tokens
from benchmarks.mistakes.pieces import Embed, Linear, Piece, pool_tokens
from jaxmodels.compare import Pair


VOCABULARY, LENGTH, CLASSES = 20, 6, 5


class TorchLSTMClassifier(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, dim)
        self.lstm = torch.nn.LSTM(dim, dim, batch_first=True)
        self.gate, self.head = torch.nn.Linear(dim, 2 * dim), torch.nn.Linear(dim, CLASSES)
        self.mix = torch.nn.Linear(dim, dim)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.embed(ids))
        states = F.glu(self.gate(states.detach() + states), dim=-1)
        states = (states - states.mean(-1, keepdim=True)) / (states.std(-1, keepdim=True) + 1e-3)
        vector = F.normalize(self.mix(states)[:, -1], dim=-1)
        return F.log_softmax(self.head(vector) * 4.0, dim=-1)


class LSTM(Piece):
    def __init__(self, dim: int) -> None:
        self.weight_ih_l0, self.weight_hh_l0 = parameter(4 * dim, dim), parameter(4 * dim, dim)
        self.bias_ih_l0, self.bias_hh_l0 = parameter(4 * dim), parameter(4 * dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = c = jnp.zeros((len(x), x.shape[-1]), x.dtype)
        bias = self.bias_ih_l0[...]
        if not self.has("one bias of the LSTM left out"):
            bias = bias + self.bias_hh_l0[...]
        if self.has("LSTM run backwards"):
            x = x[:, ::-1]
        outputs = []
        for step in range(x.shape[1]):
            gates = x[:, step] @ self.weight_ih_l0[...].T + h @ self.weight_hh_l0[...].T + bias
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            if self.has("gates ordered i, f, o, g"):
                g, o = o, g
            if self.has("gates ordered i, g, f, o"):
                f, g = g, f
            if self.has("forget gate plus one"):
                f = f + 1
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * (c if self.has("tanh of the cell left out") else jnp.tanh(c))
            outputs.append(h)
        return jnp.stack(outputs, axis=1)


class LSTMClassifier(Piece):
    def __init__(self, dim: int) -> None:
        self.embed, self.lstm = Embed(VOCABULARY, dim), LSTM(dim)
        self.gate, self.head, self.mix = Linear(dim, 2 * dim), Linear(dim, CLASSES), Linear(dim, dim)

    def __call__(self, ids: jax.Array) -> jax.Array:
        states = self.lstm(self.embed(ids))
        stopped = states if self.has("detach forgotten") else jax.lax.stop_gradient(states)
        x, gate = jnp.split(self.gate(stopped + states), 2, axis=-1)
        if self.has("gate and value exchanged"):
            x, gate = gate, x
        x = x if self.has("gate left out") else x * jax.nn.sigmoid(gate)
        deviation = x.std(-1, keepdims=True, ddof=0 if self.has("deviation divided by n") else 1)
        x = (x - x.mean(-1, keepdims=True)) / (
            deviation + (1e-5 if self.has("epsilon of a deviation") else 1e-3)
        )
        vector = pool_tokens(self, self.mix(x), "last")
        if not self.has("normalisation left out"):
            length = jnp.linalg.norm(vector, axis=-1, keepdims=True)
            vector = vector / (
                length + 1e-2 if self.has("epsilon added to the length") else jnp.maximum(length, 1e-12)
            )
        logits = self.head(vector) * (1.0 if self.has("logits not scaled") else 4.0)
        if self.has("log softmax left out"):
            return logits
        return jax.nn.softmax(logits) if self.has("softmax for its logarithm") else jax.nn.log_softmax(logits)


def build(seed: int, size: int) -> Pair:
    """(b, 6) indices -> (b, 5) log-probabilities."""
    dim, batch = 8 * (1 + size), 3 + size
    theirs = random_weights(TorchLSTMClassifier(dim), seed)
    ids = tokens(seed, batch, LENGTH, vocabulary=VOCABULARY)
    return labelled(
        LSTMClassifier(dim), theirs, {"ids": ids, "labels": labels_for(seed, batch, classes=CLASSES)}
    )
