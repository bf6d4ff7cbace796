"""Counts the FLOP of a PyTorch call. Free of JAX."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count(call: Callable[[], Any]) -> int:
    """FLOP of matrix products, convolutions and attention in one call of an eager model.

    Two errors of `FlopCounterMode` are corrected. It ignores the groups of a convolution in the gradient of its weight.
    It counts nothing for fused attention on a CPU, so attention is computed with matrix products here.
    """
    backward = {torch.ops.aten.convolution_backward: convolution_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=backward) as counter:
        call()
    return counter.get_total_flops()


def convolution_backward(
    output: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    output_mask: Sequence[bool],
    **_: object,
) -> int:
    """FLOP of a convolution's gradients, each as many as of the convolution itself.

    Args:
      output, inputs, weight: shapes; a weight is (outputs, inputs / groups, …), or (inputs, outputs / groups, …) if
        transposed.
      transposed: whether it is a transposed convolution.
      output_mask: which gradients are computed: of the inputs, the weight, the bias.
    """
    positions = math.prod((inputs if transposed else output)[2:])
    return 2 * sum(output_mask[:2]) * inputs[0] * positions * math.prod(weight)
