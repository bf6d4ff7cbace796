"""The next-token loss of a language model, and sampling from it, as in hourglass-transformer-pytorch.

Shapes: b batch, n tokens, m new tokens, v vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torch_reference.checks import require_integer, require_sequence, require_tokens
from torch_reference.losses import mean_cross_entropy


class AutoregressiveWrapper(nn.Module):
    """Next-token loss and sampling around a model. (A module: the package prefixes its keys with `net`.)"""

    def __init__(self, net: nn.Module, pad_value: int = 0) -> None:
        super().__init__()
        if not hasattr(net, "max_seq_len"):
            raise ValueError(
                f"net must have an attribute max_seq_len; got a {type(net).__name__} without one"
            )
        self.pad_value = pad_value
        self.net = net
        self.max_seq_len: Any = net.max_seq_len

    def forward(self, x: Int[Tensor, "b n"], **kwargs: Any) -> Float[Tensor, ""]:
        """Mean cross-entropy of the next tokens, without those that are `pad_value`; NaN if all are.

        `kwargs` go to the model, which gets x[:, :-1]: a mask has one position fewer than `x`.
        """
        require_tokens("x", x)
        inputs, targets = x[:, :-1], x[:, 1:]
        logits = self.net(inputs, **kwargs)
        return mean_cross_entropy(logits, targets, ignored=self.pad_value)

    @torch.no_grad()
    def generate(
        self,
        start_tokens: Int[Tensor, "b n"],
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        filter_thres: float = 0.9,
        **kwargs: Any,
    ) -> Int[Tensor, "b m"]:
        """Samples up to `seq_len` new tokens; see `jaxmodels.generation.generate`.

        It differs from the package: an `eos_token` in the prompt does not count, later tokens always become
        `pad_value`, at least one token passes the filter, temperature 0 means the argmax, and an exception does
        not leave the model in evaluation mode.
        """
        require_tokens("start_tokens", start_tokens)
        require_sequence("start_tokens", start_tokens, None)
        require_integer("seq_len", seq_len, minimum=0)
        require_sampling(temperature, filter_thres)
        was_training = self.training
        self.eval()
        try:
            out = start_tokens
            finished = torch.zeros(len(out), dtype=torch.bool, device=out.device)
            for _ in range(seq_len):
                logits = self.net(out[:, -self.max_seq_len :], **kwargs)[:, -1]
                token = draw(logits, temperature, filter_thres)
                out = torch.cat([out, token], dim=-1)
                if eos_token is not None:
                    finished |= token[:, 0] == eos_token
                    if finished.all():
                        break
        finally:
            self.train(was_training)
        out = out[:, start_tokens.shape[1] :]
        if eos_token is not None:
            is_eos = (out == eos_token).long()
            out = out.masked_fill(is_eos.cumsum(dim=-1) - is_eos > 0, self.pad_value)
        return out


def draw(logits: Float[Tensor, "b v"], temperature: float, filter_thres: float) -> Int[Tensor, "b 1"]:
    """One token per row, from the softmax of the (1 - filter_thres) · v highest logits, at least one."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    k = max(1, int((1 - filter_thres) * logits.shape[-1]))
    values, indices = logits.topk(k)
    filtered = torch.full_like(logits, float("-inf")).scatter(1, indices, values)
    return torch.multinomial((filtered / temperature).softmax(dim=-1), 1)


def require_sampling(temperature: float, filter_thres: float) -> None:
    """ValueError unless temperature ≥ 0 and 0 ≤ filter_thres ≤ 1."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be finite and ≥ 0; got temperature={temperature!r}")
    if not 0 <= filter_thres <= 1:
        raise ValueError(f"filter_thres must lie in [0, 1]; got filter_thres={filter_thres!r}")
